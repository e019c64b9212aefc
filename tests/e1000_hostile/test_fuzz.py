"""Whatever a guest and its network do: no exception, an end, no byte outside guest memory, and no frame that is in two places or none."""

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qnet.models._e1000 import registers
from qnet.testing import guest_e1000 as g

MEMORY = 1 << 20
RINGS = (0x1000, 0x4000, MEMORY - 64, 0x7FF8)
SLOW = 20                               # descriptors in a ring: what is sent is bounded by the ring, so keep it small

u32 = st.integers(0, 2**32 - 1)
OFFSETS = [row["offset"] + 4 * i for row in registers() for i in range(min(row["count"], 4))]
# What makes a card move. Ring lengths stay small: 65528 descriptors of 64 KiB are a bounded, but a long, time.
SPECIAL = {
    g.TDT: st.integers(0, SLOW), g.RDT: st.integers(0, SLOW), g.TDH: st.integers(0, SLOW), g.RDH: st.integers(0, SLOW),
    g.TDLEN: st.sampled_from([0, 128, 256]), g.RDLEN: st.sampled_from([0, 128, 256]),
    g.TDBAL: st.sampled_from(RINGS), g.RDBAL: st.sampled_from(RINGS), g.TDBAH: st.sampled_from([0, 0, 0, 1, 0xFFFFFFFF]),
    g.RDBAH: st.sampled_from([0, 0, 0, 1, 0xFFFFFFFF]),
    g.TCTL: st.sampled_from([2, 2, 0]),
    g.RCTL: st.builds(lambda size, bits: 2 | size | bits & ~0x2030002, st.sampled_from(list(g.RCTL_BSIZE.values())), u32),
    g.CTRL: st.sampled_from([g.CTRL_VME, 0, g.CTRL_RST, g.CTRL_VME | g.CTRL_SLU]),
    g.MDIC: st.sampled_from([0x0420_5140, 0x0420_1140, 0x0420_1340, 0x0820_0000, 0xFFFF_FFFF]),
}  # fmt: skip

addresses = st.one_of(st.integers(0, MEMORY), st.sampled_from([*RINGS, 0, MEMORY - 1, MEMORY - 60, 2**64 - 1, 2**64 - 60, 1 << 40]))
doorbells = st.one_of([st.tuples(st.just("write"), st.just(0), st.just(reg), st.just(4), value) for reg, value in SPECIAL.items()])
offsets = st.one_of(st.sampled_from(OFFSETS), st.integers(0, 0x20010), st.integers(0, 2**64 - 1))
writes = st.tuples(st.just("write"), st.integers(0, 2), offsets, st.sampled_from([1, 2, 4, 8]),
                   st.one_of(st.integers(0, 0xFF), st.integers(0, 2**64 - 1)))


def touches(step, *regs):
    """Does this write change any of these registers, directly or through the I/O window?"""
    return bool(set(regs) & {(step[2] + i & 0x1FFFF) & ~3 for i in range(step[3])}) or (step[1] == 1 and step[2] == 4)


# a ring's length is not to be anything: see SPECIAL
writes = writes.filter(lambda step: not touches(step, g.TDLEN, g.RDLEN))
reads = st.tuples(st.just("read"), st.integers(0, 2), offsets, st.sampled_from([1, 2, 4, 8]))
configs = st.tuples(st.just("config"), st.integers(0, 260), st.sampled_from([1, 2, 4]), u32)
commands = st.tuples(st.just("config"), st.just(4), st.just(2), st.sampled_from([7, 7, 0, 3, 0x407]))
lengths = st.one_of(st.integers(0, 3000), st.sampled_from([0, 1, 14, 54, 60, 1514, 0xFFFF, 0xFFFFF]))
flags = st.one_of(st.sampled_from([0, g.CMD_EOP, g.CMD_EOP | g.CMD_RS]), st.integers(0, 0xFF))
ranges = st.one_of(st.sampled_from([(14, 24, 33), (34, 50, 0)]),
                   st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 0xFFFF)))
descriptors = st.one_of(
    st.builds(lambda a, n, cso, cmd, css, tag: struct.pack("<QHBBBBH", a, n & 0xFFFF, cso, cmd & ~g.CMD_DEXT, 0, css, tag),
              addresses, lengths, st.integers(0, 255), flags, st.integers(0, 255), st.integers(0, 0xFFFF)),
    st.builds(lambda a, n, cmd, popts, tag: struct.pack("<QIBBH", a, n | 1 << 20 | (cmd | g.CMD_DEXT) << 24, 0, popts, tag),
              addresses, lengths, flags, st.integers(0, 3), st.integers(0, 0xFFFF)),
    st.builds(lambda ip, tu, n, cmd, h, mss:
              struct.pack("<BBHBBHIBBH", *ip, *tu, n & 0xFFFFF | (cmd | g.CMD_DEXT) << 24, 0, h, mss),
              ranges, ranges, u32, st.integers(0, 7), st.sampled_from([0, 1, 20, 54, 66, 255]), st.one_of(st.just(0), st.integers(40, 0xFFFF))),
    st.binary(min_size=16, max_size=16),
)  # fmt: skip
rings = st.tuples(st.just("memory"), st.sampled_from(RINGS[:2]), st.lists(descriptors, min_size=1, max_size=12).map(b"".join))
frames = st.tuples(st.just("arrive"), st.lists(st.builds(
    lambda n, head: (head + bytes(n))[:n], st.one_of(st.integers(1, 70), st.sampled_from([1514, 1518, 1519, 1523, 2049, 9000, 16385])),
    st.sampled_from([b"\xff" * 12 + b"\x81\x00\x01\x23", bytes.fromhex("525400123456525400000001080045"), b"\x01" * 14]),
), max_size=6))  # fmt: skip
others = st.sampled_from([("time", 1_000_000), ("time", 10**9), ("link", False), ("link", True), ("reset",), ("take",)])
programs = st.lists(st.one_of(doorbells, doorbells, rings, rings, writes, reads, configs, commands, frames, others), max_size=60)


def conserve(sender, receiver, name):
    """What one sent the other got, dropped, or still holds."""
    out, into = sender.stats(), receiver.stats()
    assert out["tx_packets"] == into["rx_packets"] + into["queued"], name


def run(rig, m, program):
    """Do what the program says; the wire's and the card's counters agree after every step."""
    nic = rig.nic
    rig.put(rig.TX_BUF, m.tcp(3000))
    for step in program:
        match step:
            case "write", bar, offset, size, value:
                nic.bar_write(bar, offset, size, value & (1 << 8 * size) - 1)
            case "read", bar, offset, size:
                assert 0 <= nic.bar_read(bar, offset, size) < 1 << 8 * size
            case "config", offset, size, value:
                nic.cfg_write(offset, size, value & (1 << 8 * size) - 1)
                assert 0 <= nic.cfg_read(offset, size) < 1 << 8 * size
            case "memory", addr, data:
                rig.put(addr, data)
            case "arrive", some:
                rig.wire.send(some)
            case "time", ns:
                rig.loop.run_until(rig.loop.now() + ns)
            case "link", up:
                rig.wire.set_link(up)
            case ("reset",):
                nic.reset()
            case ("take",):
                rig.wire.recv()
    assert nic.irq_level in (0, 1)
    assert not rig.wire.breaches


FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.mark.parametrize("options", [{}, {"compat": "qemu"}, {"mitigation": False, "extra_mac_registers": False}])
@pytest.mark.parametrize("takes", ["plain", "all"])
@FUZZ
@given(program=programs)
def test_any_guest_and_any_network(rig_type, m, options, takes, program):
    """Canaries around guest memory are looked at when the rig is closed; sanitizers look at the rest."""
    rig = rig_type(**options)
    rig.wire.takes = takes
    rig.w(g.TCTL, g.TCTL_EN)
    rig.rx_ring(8)
    try:
        run(rig, m, program)
    finally:
        rig.close()


@FUZZ
@given(program=programs)
def test_frames_are_conserved(rig_type, m, program):
    """Without loopback, and with the link up: what is sent is received or waits; what is received is stored or counted as dropped."""
    rig = rig_type(mac_loopback=False)
    rig.rx_ring(8)
    rig.wire.takes = "all"
    try:
        run(rig, m, [step for step in program if step[0] != "link" and not (step[0] == "write" and touches(step, g.MDIC))])
        conserve(rig.wire, rig.nic, "to the card")
        conserve(rig.nic, rig.wire, "from the card")
        assert rig.loop.queued == rig.nic.queued + rig.wire.queued
    finally:
        rig.close()
