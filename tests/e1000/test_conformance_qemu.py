"""Every register, EEPROM word, PHY register and byte of configuration space of the model beside those of a real QEMU (7.2 of Debian 12).

With compat=qemu nothing may differ but what KEPT lists; without, nothing but what DEPARTURES lists besides. Descriptors and frames:
test_conformance_rings_qemu.py.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest

from qnet.models._e1000 import WAYS, registers
from qnet.testing import guest_e1000 as g

pytestmark = pytest.mark.qemu

DWORDS = range(0, 0x20000, 4)
PATTERNS = (0xFFFFFFFF, 0x5555AAAA, 0)
NAMES = {reg["offset"] + 4 * i: reg["name"] for reg in registers() for i in range(reg["count"])}

# Differences that each named departure makes, by register; all other departures make none that a register shows.
DEPARTURES = {
    # the reset that CTRL.RST orders is over when the register is read (13.4.1)
    "ctrl-reset": {"CTRL"},
    # registers of the manual that QEMU does not decode, and reserved bits that read 0 in the manual and are storage in QEMU
    "full-decode": {
        "CTRL_EXT", "FCAL", "FCAH", "FCT", "FCTTV", "TXCW", "FCRTL", "FCRTH", "RXDCTL", "RSRPD", "RXCSUM", "TIPG", "TIDV", "TSPMT",
        "VET", "RDBAL", "TDBAL", "RA",
    },
}  # fmt: skip

# Differences that compat=qemu keeps, each with its reason.
KEPT = {
    # extra_mac_registers=off: QEMU hides the first dword of these tables only. A machine that old had none of it.
    "tables hidden whole": {"IP4AT", "IP6AT", "WUPM", "FFLT", "FFMT", "FFVT", "PBM"},
    # QEMU makes all of configuration space that it does not know into memory; the chip has no register there.
    "no memory behind the configuration header": set(range(0x40, 0x100)),
    # E6: QEMU hands a part of a register to the handler of the whole one, unshifted. Here it is the part that the address names.
    "bytes and words of a register": {1, 2, 8},
}


class Sweep:
    """What every dword answers: after reset, and after each pattern was written to it. Two reads: the second shows what clears on read."""

    def __init__(self, card: Any) -> None:
        reset = card.read_all(DWORDS)
        self.answers = {reg: [value, again] for reg, value, again in zip(DWORDS, reset, card.read_all(DWORDS), strict=True)}
        for pattern in PATTERNS:
            accesses: list[tuple[int, int | None]] = []
            for reg, old in zip(DWORDS, reset, strict=True):
                accesses += [(reg, pattern), (reg, None), (reg, None), (g.ICR, None), (g.IMC, 0xFFFFFFFF), (reg, old)]
            answers = iter(card.batch(accesses))
            for reg in DWORDS:
                self.answers[reg] += [next(answers) for _ in range(3)]

    def __sub__(self, other: "Sweep") -> set[str]:
        """Names of the registers that differ."""
        return {NAMES.get(reg, f"{reg:#x}") for reg in DWORDS if self.answers[reg] != other.answers[reg]}


def of_qnet(make_card: Callable[..., Any], *args: Any, **options: Any) -> Sweep:
    card = make_card(*args, **options)
    card.enable()
    return Sweep(card)


@pytest.mark.slow
def test_registers(make_qemu: Callable[..., Any], make_card: Callable[..., Any]) -> None:
    """4.2: all 32768 dwords. Each departure alone makes the differences listed, and together they make no other."""
    qemu = Sweep(make_qemu())
    assert not qemu - of_qnet(make_card, compat="qemu")
    assert {way: found for way in WAYS if (found := qemu - of_qnet(make_card, compat="qemu", **{way.replace("-", "_"): True}))} == DEPARTURES
    assert qemu - of_qnet(make_card) == set.union(*DEPARTURES.values())


@pytest.mark.slow
def test_registers_of_old_machines(make_qemu: Callable[..., Any], make_card: Callable[..., Any]) -> None:
    """E5: the properties that old machine types set."""
    off = ("mitigation", "extra_mac_registers", "init_vet", "autonegotiation")
    qemu = Sweep(make_qemu(**{name.replace("init_", "init-"): "off" for name in off}))
    ours = of_qnet(make_card, compat="qemu", **dict.fromkeys(off, False))
    assert qemu - ours == KEPT["tables hidden whole"]


@pytest.mark.parametrize("model", ["e1000", "e1000-82544gc", "e1000-82545em"])
def test_identity(make_qemu: Callable[..., Any], make_card: Callable[..., Any], model: str) -> None:
    """E1, P1, Y3: configuration space, EEPROM through EERD and Microwire, PHY, and all registers after reset."""
    qemu, ours = make_qemu(model), make_card(model)
    ours.cfg_write(0x10, 4, qemu.BAR)
    compat = make_card(model, compat="qemu")
    for card in (qemu, ours, compat):
        card.enable()
    assert compat.read_all(DWORDS) == qemu.read_all(DWORDS)
    assert [ours.cfg_read(i, 4) for i in range(0, 256, 4)] == [qemu.cfg_read(i, 4) for i in range(0, 256, 4)]
    assert [eerd(ours, i) for i in range(64)] == [eerd(qemu, i) for i in range(64)]
    assert [microwire(ours, i) for i in range(64)] == [microwire(qemu, i) for i in range(64)] == [eerd(ours, i) for i in range(64)]
    assert [mdic(ours, i) for i in range(32)] == [mdic(qemu, i) for i in range(32)]


def eerd(card: Any, word: int) -> int:
    card.w(g.EERD, word << 8 | 1)
    return card.r(g.EERD) >> 16


def mdic(card: Any, reg: int) -> int:
    card.w(g.MDIC, 1 << 21 | reg << 16 | 0x08000000)
    return card.r(g.MDIC)


def microwire(card: Any, word: int) -> int:
    """Read a word bit by bit (5.3): a start bit, the read command, six address bits, then 16 bits of data."""
    eecd, sk, cs, di, do = 0x10, 1, 2, 4, 8
    value = 0
    card.w(eecd, cs)
    for bit in f"110{word:06b}":
        card.write_all([(eecd, cs | (di if bit == "1" else 0)), (eecd, cs | sk | (di if bit == "1" else 0))])
    for _ in range(16):
        card.write_all([(eecd, cs), (eecd, cs | sk)])
        card.w(eecd, cs | sk)
        value = value << 1 | (1 if card.r(eecd) & do else 0)
    card.w(eecd, 0)
    return value


@pytest.mark.parametrize("pattern", PATTERNS)
def test_configuration_space(make_qemu: Callable[..., Any], make_card: Callable[..., Any], pattern: int) -> None:
    """E1, E2: write masks of all 256 bytes, dword by dword and byte by byte."""
    qemu, ours = make_qemu(), make_card(compat="qemu")
    ours.cfg_write(0x10, 4, qemu.BAR)
    for card in (qemu, ours):
        card.enable()
    different = set()
    for size in (4, 1):
        for offset in range(0, 256, size):
            was = qemu.cfg_read(offset, size)
            answers = []
            for card in (qemu, ours):
                card.cfg_write(offset, size, pattern & (1 << 8 * size) - 1)
                answers.append(card.cfg_read(offset, size))
                card.cfg_write(offset, size, was)
            if answers[0] != answers[1]:
                different |= set(range(offset, offset + size))
    assert different == (KEPT["no memory behind the configuration header"] if pattern else set())


def test_mdic_and_microwire(make_qemu: Callable[..., Any], make_card: Callable[..., Any]) -> None:
    """P2 to P4, Y1, Y2, Y4: any sequence of MDI accesses, EERD words and EEPROM line levels is answered alike."""
    qemu, ours = make_qemu(), make_card(compat="qemu")
    for card in (qemu, ours):
        card.enable()
    rng = random.Random(1)
    for _ in range(400):
        op, phy = rng.choice([0x04000000, 0x08000000, 0, 0x0C000000]), rng.choice([1, 1, 1, 0, 2])
        # bit 9 restarts auto-negotiation, which takes time: test_autonegotiation
        value = op | phy << 21 | rng.randrange(32) << 16 | rng.getrandbits(16) & ~0x200 | rng.choice([0, 0x20000000])
        both(qemu, ours, g.MDIC, value, g.MDIC, g.ICR, g.STATUS)
    levels = [2, 3, 6, 7] * 8 + [0, 0x37, 0xFFFFFFFF]
    for _ in range(1500):
        both(qemu, ours, 0x10, rng.choice(levels), 0x10)
    for word in range(0x100):
        for start in (0, 1):
            both(qemu, ours, g.EERD, rng.getrandbits(16) << 16 | word << 8 | start, g.EERD)


def both(qemu: Any, ours: Any, reg: int, value: int, *then: int) -> None:
    """Write both; what they answer then must be equal."""
    qemu.w(reg, value)
    ours.w(reg, value)
    assert ours.read_all(then) == qemu.read_all(then), f"after {value:#x} to {reg:#x}"


def test_autonegotiation(make_qemu: Callable[..., Any], make_card: Callable[..., Any]) -> None:
    """Y4: while it runs, and once it is over."""
    qemu, ours = make_qemu(realtime=True), make_card(compat="qemu")
    seen = []
    for card in (qemu, ours):
        card.enable()
        card.w(g.IMS, g.LSC)
        card.w(g.MDIC, 1 << 21 | 0x04000000 | 0x1340)
        running = [mdic(card, i) for i in range(32)], card.r(g.STATUS), card.r(g.ICS), card.level
        if card is ours:
            card.advance(500_000_000)
        while not card.r(g.STATUS) & g.STATUS_LU:
            assert card is qemu
        over = [mdic(card, i) for i in range(32)], card.r(g.STATUS), card.r(g.ICS), card.level, card.r(g.ICR), card.level
        seen.append((running, over))
    assert seen[0] == seen[1]


def test_interrupt_registers(make_qemu: Callable[..., Any], make_card: Callable[..., Any]) -> None:
    """I1, I2: any sequence of ICR, ICS, IMS and IMC accesses, with the line's level."""
    qemu, ours = make_qemu(mitigation="off"), make_card(compat="qemu", mitigation=False)
    for card in (qemu, ours):
        card.enable()
    rng = random.Random(2)
    for _ in range(500):
        reg = rng.choice([g.ICR, g.ICS, g.IMS, g.IMC])
        both(qemu, ours, reg, rng.choice([rng.getrandbits(32), 0, 0xFFFFFFFF, 1 << rng.randrange(32)]), g.ICS, g.IMS, g.IMC)
        assert ours.level == qemu.level
        if rng.random() < 0.3:
            assert ours.r(g.ICR) == qemu.r(g.ICR)
            assert ours.level == qemu.level == 0


def test_bytes_and_words(make_qemu: Callable[..., Any], make_card: Callable[..., Any]) -> None:
    """E6: where QEMU differs is what KEPT says: not dwords and no pair of them, and at least one access of each other kind."""
    qemu, ours = make_qemu(), make_card(compat="qemu")
    for card in (qemu, ours):
        card.enable()
    different = set()
    mta = g.MTA
    for size in (1, 2, 4, 8):
        for offset in range(8):
            answers = []
            for card in (qemu, ours):
                card.write_all([(mta, 0x11223344), (mta + 4, 0x55667788), (mta + 8, 0x99AABBCC), (mta + 12, 0xDDEEFF00)])
                value = card.r(mta + offset, size)
                card.w(mta + offset, 0xA1B2C3D4E5F60718 & (1 << 8 * size) - 1, size)
                answers.append((value, card.read_all([mta, mta + 4, mta + 8, mta + 12])))
            if answers[0] != answers[1]:
                different.add((size, offset % 4 == 0))
    assert {size for size, _ in different} == KEPT["bytes and words of a register"] | {4}
    assert (8, True) not in different
    assert (4, True) not in different
