"""Saving and restoring an e1000 (facts 4.10, V1 to V3)."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnet import Net
from qnet._loop import VirtualClock
from qnet.errors import Error

CTRL, STATUS, MDIC, ICR, ITR, ICS, IMS, RCTL, TCTL = 0x0, 0x8, 0x20, 0xC0, 0xC4, 0xC8, 0xD0, 0x100, 0x400
RDBAL, RDLEN, RDH, RDT, TDBAL, TDLEN, TDH, TDT = 0x2800, 0x2808, 0x2810, 0x2818, 0x3800, 0x3808, 0x3810, 0x3818
TX_RING, RX_RING, BUFFERS = 0x1000, 0x2000, 0x10000
EOP_RS, RS = 0x0B, 0x08


@contextmanager
def card(memory: bytearray, properties: str = "", model: str = "e1000") -> Iterator[tuple[Net, Any]]:
    with Net(clock=VirtualClock(), memory=memory) as net:
        net.netdev_add("hubport,id=n0,hubid=0")
        net.netdev_add("hubport,id=n1,hubid=0")
        net.netdev_add("null,id=sink")
        nic = net.device_add(f"{model},netdev=n0,mac=52:54:00:12:34:56{properties}")
        nic.cfg_write(0x10, 4, 0xFEBC0000)
        nic.cfg_write(4, 2, 7)
        yield net, nic


def w(nic: Any, register: int, value: int) -> None:
    nic.bar_write(0, register, 4, value)


def r(nic: Any, register: int) -> int:
    return int(nic.bar_read(0, register, 4))


def rings(nic: Any, memory: bytearray) -> None:
    for at, base, size in ((TX_RING, TDBAL, TDLEN), (RX_RING, RDBAL, RDLEN)):
        w(nic, base, at)
        w(nic, size, 128)
    for i in range(8):
        struct.pack_into("<QQ", memory, RX_RING + 16 * i, BUFFERS + 2048 * (8 + i), 0)
    w(nic, RCTL, 0x8002)
    w(nic, TCTL, 2)
    w(nic, RDT, 7)


def post(memory: bytearray, i: int, data: bytes, command: int) -> None:
    at = BUFFERS + 2048 * i
    memory[at : at + len(data)] = data
    struct.pack_into("<QII", memory, TX_RING + 16 * i, at, len(data) | command << 24, 0)


def test_a_fresh_device_takes_over_in_the_middle_of_everything() -> None:
    memory = bytearray(1 << 18)
    half = b"\xff" * 6 + bytes(range(60))
    with card(memory) as (net, nic):
        rings(nic, memory)
        w(nic, IMS, 0x3)
        post(memory, 0, half, RS)                                   # no EOP: a packet in flight
        w(nic, TDT, 1)
        assert nic.irq_level == 1                                   # and a mitigation window is open
        r(nic, ICR)
        w(nic, MDIC, 1 << 21 | 0x04000000 | 0x1200)                 # auto-negotiation runs
        assert not r(nic, STATUS) & 2
        net.run_until(50_000)
        state, ram = nic.save(), bytes(memory)
    memory[:] = ram
    with card(memory) as (net, nic):
        start = net.now()
        nic.load(state)
        assert nic.save() == state                                  # nothing is lost, nothing moves
        w(nic, ICS, 1)
        assert nic.irq_level == 0                                   # within the window
        net.run_until(start + 77_999)
        assert nic.irq_level == 0
        net.run_until(start + 78_000)                               # 128 us after it opened
        assert nic.irq_level == 1
        net.run_until(start + 500_000_000)
        assert r(nic, STATUS) & 2                                   # negotiated
        post(memory, 1, b"the end", EOP_RS)
        w(nic, TDT, 2)
        assert nic.stats()["tx_bytes"] == len(half) + 7
        assert r(nic, TDH) == 2


def test_a_stream_of_qemus_has_no_part_of_ours() -> None:
    """V2: link and negotiation are inferred; the window ends a nanosecond later."""
    memory = bytearray(1 << 16)
    with card(memory) as (net, nic):
        w(nic, IMS, 4)
        w(nic, ICS, 4)
        w(nic, MDIC, 1 << 21 | 0x04000000 | 0x1200)
        state = nic.save()
    state = state[: state.rindex(b"\x05\x10e1000/qnet_state")]
    with card(memory) as (net, nic):
        nic.load(state)
        assert nic.irq_level == 1
        assert not r(nic, STATUS) & 2
        net.run_until(net.now() + 500_000_000)
        assert r(nic, STATUS) & 2


def test_a_link_that_is_down_is_told_from_one_that_negotiates() -> None:
    """V1: auto-negotiation counts as complete in what another reader sees."""
    memory = bytearray(1 << 16)
    with card(memory) as (net, nic):
        net.set_link("n0", False)
        state = nic.save()
    state = state[: state.rindex(b"\x05\x10e1000/qnet_state")]
    with card(memory) as (net, nic):
        nic.load(state)
        net.run_until(net.now() + 1_000_000_000)
        assert nic.link_down
        assert not r(nic, STATUS) & 2


def test_bars_and_command_come_along() -> None:
    memory = bytearray(1 << 16)
    with card(memory) as (_, nic):
        state = nic.save()
    with Net(memory=memory) as net:
        nic = net.device_add("e1000,mac=52:54:00:12:34:57")
        assert nic.bar_address(0) is None
        nic.load(state)
        assert nic.bar_address(0) == 0xFEBC0000


@pytest.mark.parametrize("properties", ["", ",mitigation=off", ",extra_mac_registers=off", ",migrate_tso_props=off", ",compat=qemu"])
@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 0x7FFF), st.integers(0, 0xFFFFFFFF)), max_size=30))
def test_save_load_save_is_the_same(properties: str, writes: list[tuple[int, int]]) -> None:
    memory = bytearray(1 << 16)
    with card(memory, properties) as (_, nic):
        for index, value in writes:
            w(nic, index * 4 if index * 4 != CTRL else STATUS, value)
        nic.cfg_write(4, 2, 3)
        state = nic.save()
    with card(memory, properties) as (_, nic):
        nic.load(state)
        nic.cfg_write(4, 2, 3)
        assert nic.save() == state


def broken(state: bytes) -> Iterator[tuple[str, bytes]]:
    yield "ends too early", state[:-1]
    yield "ends too early", b""
    yield "behind its end", state + b"\0"
    yield "unknown version", b"\x03" + state[1:]
    yield "does not fit", state[:6] + b"\x0f" + state[7:]
    yield "buffers", state[:280] + struct.pack(">I", 77) + state[284:]
    yield "threshold", state[:284] + struct.pack(">I", 9) + state[288:]
    yield "unknown part", state.replace(b"e1000/qnet_state", b"e1000/qnet_wrong"[:16])
    at = state.rindex(b"e1000/qnet_state") + 20
    yield "packet or flags", state[: at + 4] + struct.pack(">I", 70000) + state[at + 8 :]
    yield "timer", state[: at + 18] + struct.pack(">q", 1 << 60) + state[at + 26 :]


def test_what_no_save_makes_is_refused_and_changes_nothing() -> None:
    memory = bytearray(1 << 16)
    with card(memory) as (_, nic):
        rings(nic, memory)
        before = nic.save()
        for text, data in broken(before):
            with pytest.raises(Error, match=text):
                nic.load(data)
            assert nic.save() == before, text


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_bytes_of_any_kind_do_no_harm(data: st.DataObject) -> None:
    """A stream with anything changed loads, or is refused; the device works on either way (V3)."""
    memory = bytearray(1 << 18)
    with card(memory) as (net, nic):
        rings(nic, memory)
        state = bytearray(nic.save())
        for _ in range(data.draw(st.integers(1, 8))):
            at = data.draw(st.one_of(st.integers(0, 900), st.integers(0, len(state) - 1)))
            state[at] = data.draw(st.integers(0, 255))
        with suppress(Error):
            nic.load(bytes(state))
        nic.cfg_write(4, 2, 7)
        w(nic, TCTL, 2)
        w(nic, TDT, 5)
        net.run_until(net.now() + 10**9)
        nic.reset()
        assert r(nic, TDT) == 0
