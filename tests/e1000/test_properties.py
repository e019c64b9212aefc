"""Properties: their defaults, compat=qemu, and each departure alone (E5; design section 5). What each changes is tested beside the feature."""

from collections.abc import Callable
from typing import Any

import pytest

from qnet.models._e1000 import FEATURES, WAYS
from qnet.models.e1000 import MODELS, Options
from qnet.options import Form, fields_of, parse_pairs, properties, read_options
from qnet.testing import guest_e1000 as g

NAMES = [way.replace("-", "_") for way in WAYS]


def test_defaults() -> None:
    options = Options()
    assert [getattr(options, name) for name in NAMES] == [None] * len(NAMES)
    assert [getattr(options, name.replace("-", "_")) for name in FEATURES] == [True] * len(FEATURES)
    assert options.compat == "none"


def behaviour(card: Any, t: Any) -> dict[str, bool]:
    """Which departures a card shows."""
    shows = {}
    card.stalls = False
    card.w(g.VET, 0x9100)
    card.w(g.CTRL, g.CTRL_RST)
    shows["ctrl-reset"] = card.r(g.VET) == 0x8100
    card.w(g.VET, 0x8100)
    card.w(g.TIPG, 1)
    shows["full-decode"] = card.r(g.TIPG) == 1
    card.nic.bar_write(1, 0, 4, g.STATUS)
    shows["io-window"] = card.nic.bar_read(1, 4, 4) != 0
    card.tx_init()
    shows["legacy-checksum"] = card.send(t.frame(60), g.CMD_EOP | g.CMD_IC, cso=20, css=14) != [t.frame(60)]
    card.rx_init(rctl=0x40)
    card.arrive(t.frame(60))
    shows["rx-at-once"] = card.r(g.RDH) == 1
    card.advance(1_000_000_000)
    assert card.r(g.RDH) == 1
    shows["mac-loopback"] = card.send(t.frame(60)) == []
    card.rx_init()
    card.advance(1_000_000_000)
    card.w(g.RXCSUM, 0x300)
    udp = bytes.fromhex("ffffffffffff525400000001080045000020000000004011666b0a0000010a000002000700080014000061616161616161616161616100000000")
    card.arrive(udp)
    shows["rx-checksum"] = not card.rx_desc(0).status & g.RX_IXSM
    card.w(g.RCTL, 0)
    card.arrive(t.frame(60))
    shows["rx-disabled-drops"] = card.nic.queued == 0
    return shows


def test_by_default_all_departures_are_on(card: Any, t: Any) -> None:
    assert behaviour(card, t) == dict.fromkeys(WAYS, True)


def test_compat_turns_all_off(make_card: Callable[..., Any], t: Any) -> None:
    assert behaviour(make_card(compat="qemu"), t) == dict.fromkeys(WAYS, False)


@pytest.mark.parametrize("name", WAYS)
def test_each_alone(make_card: Callable[..., Any], t: Any, name: str) -> None:
    """An option given wins over compat, either way."""
    option = name.replace("-", "_")
    off = behaviour(make_card(**{option: False}), t)
    assert off == dict.fromkeys(WAYS, True) | {name: False} | ({"rx-checksum": False} if name == "full-decode" else {})
    on = behaviour(make_card(compat="qemu", **{option: True}), t)
    # RXCSUM is one of the registers that full-decode brings
    assert on == dict.fromkeys(WAYS, False) | {name: name != "rx-checksum"}


def test_names_in_option_strings() -> None:
    """QEMU's names as QEMU spells them; departures with dashes."""
    text = "mitigation=off,extra_mac_registers=off,init-vet=off,autonegotiation=off,ctrl-reset=off,compat=qemu"
    options = read_options(Options, Form.DEVICE, parse_pairs(text), "e1000")
    assert (options.mitigation, options.extra_mac_registers, options.init_vet, options.autonegotiation) == (False,) * 4
    assert (options.ctrl_reset, options.rx_checksum, options.compat) == (False, None, "qemu")


def test_every_property_has_a_help() -> None:
    for name, spec in fields_of(Options).items():
        assert spec.help, name


def test_what_qemu_does_not_have_is_marked() -> None:
    """`info qtree` and the like show QEMU's properties; of the others those that were given."""
    assert {name for name, spec in fields_of(Options).items() if spec.extra} == {"compat", *WAYS}
    assert "compat" not in dict(properties(Options()))
    assert dict(properties(Options(io_window=False, compat="qemu")))["io-window"] == "off"


@pytest.mark.parametrize("model", MODELS)
def test_a_card_of_each_model_works(make_card: Callable[..., Any], t: Any, model: str) -> None:
    card = make_card(model)
    card.tx_init()
    card.rx_init()
    assert card.send(t.frame(100)) == [t.frame(100)]
    card.arrive(t.frame(100))
    assert card.received(0) == t.frame(100)
    assert card.nic.info_str == f"model={model},macaddr=52:54:00:12:34:56"
