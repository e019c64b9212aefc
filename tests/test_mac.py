"""M1 to M4: Ethernet addresses, their text and their pool."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnet.errors import OptionError
from qnet.mac import BASE, MacPool, format_mac, parse_mac

macs = st.binary(min_size=6, max_size=6)


@given(macs, st.sampled_from(":-"))
def test_m3_text_round_trip(mac, sep):
    assert parse_mac(format_mac(mac)) == parse_mac(mac.hex(sep).upper()) == mac


@pytest.mark.parametrize(
    ("text", "mac"),
    [
        ("2-2-3:4:5:f", "02020304050f"),
        ("12", "00000000000c"),
        ("0x12", "000000000012"),
        ("077", "00000000003f"),
        ("0xffffff", "000000ffffff"),
        ("16777215", "000000ffffff"),
        ("", "000000000000"),
        ("0:0:0:0:0:0", "000000000000"),
    ],
)
def test_m3_as_qemu_reads_it(text, mac):
    assert parse_mac(text).hex() == mac


@pytest.mark.parametrize(
    "text",
    ["zz", "2:2:3:4:5", "2:2:3:4:5:6:7", "2:2:3:4:5:6:", "2:2:3:4:5:256", "52:54:0:12:34:5g", "-1", "16777216", "12 ", "0x", "9" * 5000],
)
def test_m4_bad_text(text):
    with pytest.raises(OptionError) as caught:
        parse_mac(text)
    assert caught.value.text == "invalid syntax for ethernet address"


def last(mac):
    assert mac[:5] == BASE
    return mac[5]


def test_m1_automatic_addresses_count_up():
    pool = MacPool()
    assert [last(pool.take(None)) for _ in range(3)] == [0x56, 0x57, 0x58]
    assert last(pool.take(bytes(6))) == 0x59


def test_m1_a_given_address_marks_its_byte():
    pool = MacPool()
    assert last(pool.take(BASE + b"\x57")) == 0x57
    assert [last(pool.take(None)) for _ in range(2)] == [0x56, 0x58]
    assert pool.take(b"\x52\x54\0\x12\x35\x59") == b"\x52\x54\0\x12\x35\x59"
    assert last(pool.take(None)) == 0x59


def test_m1_exhausted():
    pool = MacPool()
    assert [last(pool.take(None)) for _ in range(169)] == list(range(0x56, 0xFF))
    assert [last(pool.take(None)) for _ in range(2)] == [0xFF, 0xFF]
    pool.release(BASE + b"\xff")
    pool.release(BASE + b"\x60")
    assert last(pool.take(None)) == 0x60


def test_m2_an_address_is_free_after_its_last_user():
    pool = MacPool()
    mac = pool.take(None)
    pool.take(mac)
    pool.release(mac)
    assert last(pool.take(None)) == 0x57
    pool.release(mac)
    pool.release(mac)
    assert pool.take(None) == mac


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 255)), max_size=80))
def test_m1_no_automatic_address_is_handed_out_twice(steps):
    pool = MacPool()
    held = []
    for take, i in steps:
        if take or not held:
            mac = pool.take(None)
            assert mac not in held
            held.append(mac)
        else:
            pool.release(held.pop(i % len(held)))
