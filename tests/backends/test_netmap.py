"""netmap, against rings in shared memory with the kernel's part played by netmap_rings.py: no kernel at hand has netmap (2.9)."""

import errno
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnet import HostError, Net, OptionError, VirtualClock
from qnet.backends import netmap
from qnet.backends.netmap import Netmap
from qnet.testing import Port

from .netmap_rings import NS_MOREFRAG, Fake


def frame(n: int, size: int = 60) -> bytes:
    return (struct.pack("!I", n) + b"\x02" * 8 + b"\x88\xb5" + bytes(range(256)) * 300)[:size]


class World:
    """nic == n0 | rings."""

    def __init__(self, ifname: str = "netmap:eth0", port: dict[str, Any] | None = None, **fake: Any) -> None:
        self.fake = Fake(**fake)
        self.real = netmap.device
        netmap.device = self.fake
        self.net = Net(clock=VirtualClock())
        client = self.net.netdev_add("netmap", id="n0", ifname=ifname)
        assert isinstance(client, Netmap)
        self.n0 = client
        self.nic = Port(self.net.loop, "nic", **(port or {}))
        self.nic.pair(self.n0)

    def pump(self) -> None:
        for _ in range(10_000):
            if not self.net.pump():
                return
        raise AssertionError("the loop never comes to rest")

    def drops(self) -> Any:
        return self.n0.stats()["drops"]

    def close(self) -> None:
        netmap.device = self.real
        self.nic.close()
        self.net.close()
        self.fake.close()
        vars(self).clear()


@pytest.fixture
def make() -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(**options: Any) -> World:
        made.append(World(**options))
        return made[-1]

    yield make
    for w in made:
        w.close()


# ------------------------------------------------------------------------------------------------------------------ traffic


def test_frames_of_every_size_both_ways(make: Any) -> None:
    """A frame takes as many slots as it needs."""
    w = make(slots=64)
    for i, size in enumerate((1, 14, 60, 1514, 2047, 2048, 2049, 4096, 9000, 65536, 69632)):
        w.nic.send([[frame(i, size)[:1], frame(i, size)[1:700], frame(i, size)[700:]]])
        w.fake.put([frame(i, size)])
        w.pump()
        assert w.fake.sent.pop() == frame(i, size)
        assert w.nic.recv() == [frame(i, size)]
    assert w.drops() == {}


def test_thousands_of_frames_round_the_rings(make: Any) -> None:
    w = make(slots=17)
    frames = [frame(i, 60 + 700 * (i % 7)) for i in range(3000)]
    w.fake.put(frames)
    w.pump()
    assert w.nic.recv() == frames
    w.nic.send(frames)
    w.pump()
    assert w.fake.sent == frames
    assert w.net.loop.allocations == 0


def test_a_burst_is_one_system_call(make: Any) -> None:
    w = make(slots=256)
    w.nic.send([frame(i) for i in range(64)])
    assert w.n0.stats()["syscalls"] == 1
    w.fake.put([frame(i) for i in range(64)])
    w.pump()
    assert w.nic.bursts == 1
    assert (w.n0.stats()["syscalls"], w.n0.stats()["wakeups"]) == (2, 1)


def test_all_rings_are_read(make: Any) -> None:
    w = make(rx_rings=3)
    for ring in range(3):
        w.fake.put([frame(100 * ring + i) for i in range(10)], ring)
    w.pump()
    got = w.nic.recv()
    assert sorted(got) == [frame(100 * ring + i) for ring in range(3) for i in range(10)]


@pytest.mark.parametrize(("headers", "length"), [((12, 10), 12), ((10,), 10), ((), 0)])
def test_the_header_of_a_vale_port(make: Any, headers: tuple[int, ...], length: int) -> None:
    """Offloads pass beside the bytes; without a header the core does them in software."""
    w = make(ifname="vale0:1", headers=headers, slots=64)
    assert w.n0.vnet_hdr_len == length == w.fake.header
    ip = bytes.fromhex("4500000000010000400600000a0000010a000002")
    tcp = bytes.fromhex("0001000200000001000000005010ffff00000000")
    offload = {"flags": 1, "gso_type": 1, "hdr_len": 54, "gso_size": 1460, "csum_start": 34, "csum_offset": 16}
    data = bytes(12) + b"\x08\x00" + ip + tcp + bytes(3000)
    w.nic.send([data], offload=offload)
    if not length:
        assert [len(f) - 54 for f in w.fake.sent] == [1460, 1460, 80]
        return
    header = struct.pack("=BBHHHH", 1, 1, 54, 1460, 34, 16).ljust(length, b"\0")
    assert w.fake.sent == [header + data]
    w.nic.takes = "csum tso4"
    w.fake.put([header + data, header, header[:-1], bytes(length) + b"x"])
    w.pump()
    assert w.nic.recv() == [data, b"x"]
    assert w.nic.offloads[0] == offload
    assert w.drops() == {"empty": 1, "malformed": 1}


# ------------------------------------------------------------------------------------------------------------- flow control


def test_what_finds_no_slots_waits_and_follows_in_order(make: Any) -> None:
    w = make(slots=16)
    w.fake.stalled = True
    frames = [frame(i, 5000) for i in range(100)]
    w.nic.send(frames)
    assert w.n0.queued == 95                                # three slots each
    w.pump()
    assert w.n0.stats()["wakeups"] <= 1
    w.fake.go_on(2)
    w.pump()
    assert w.n0.queued == 93
    w.fake.go_on()
    w.pump()
    assert w.fake.sent == frames
    assert w.drops() == {}


def test_a_frame_that_never_fits_is_dropped_the_others_go(make: Any) -> None:
    w = make(slots=8)
    w.nic.send([frame(1), frame(2, 7 * 2048 + 1), frame(3, 7 * 2048)])
    w.pump()
    assert w.fake.sent == [frame(1), frame(3, 7 * 2048)]
    assert w.drops() == {"oversize": 1}


def test_while_the_peer_has_no_room_nothing_is_read(make: Any) -> None:
    """The slots stay the client's, so the kernel has no room either."""
    w = make(slots=32, port={"capacity": 3})
    frames = [frame(i) for i in range(100)]
    w.fake.put(frames)
    w.pump()
    assert w.nic.recv() == frames[:3]
    assert w.fake.rx[0].head == 3
    wakeups = w.n0.stats()["wakeups"]
    assert w.net.pump() == 0
    assert w.n0.stats()["wakeups"] == wakeups
    got = frames[:3]
    while len(got) < 100:
        w.nic.room(7)
        w.pump()
        got += w.nic.recv()
    assert got == frames
    assert w.nic.breaches == []


def test_a_peer_that_flushes_in_its_receive_does_not_recurse(make: Any) -> None:
    w = make(slots=128, port={"capacity": 1, "asks": False, "reaction": "flush"})
    frames = [frame(i) for i in range(300)]
    w.fake.put(frames)
    w.pump()
    assert w.nic.recv() == frames
    assert w.nic.breaches == []


# ------------------------------------------------------------------------------------------------------------ hostile memory


def test_slots_that_lie(make: Any) -> None:
    """A length beyond the buffer, a buffer beyond the memory: dropped with all of the frame's slots, the next frame is whole."""
    w = make(slots=32)
    r = w.fake.rx[0]
    w.fake.piece(r, b"", 0, size=2049)
    w.fake.piece(r, b"", 0, size=65535)
    w.fake.piece(r, b"", 0, size=60, index=0xFFFFFFFF)
    w.fake.piece(r, b"", 0, size=60, index=1 << 20)
    w.fake.piece(r, b"x" * 60, NS_MOREFRAG)
    w.fake.piece(r, b"", NS_MOREFRAG, size=60000)
    w.fake.piece(r, b"y", 0)
    w.fake.piece(r, b"x" * 60, NS_MOREFRAG)
    w.fake.piece(r, b"", 0)
    w.fake.piece(r, b"", 0)
    w.fake.put([frame(1, 3000)])
    w.pump()
    assert w.nic.recv() == [frame(1, 3000)]
    assert w.drops() == {"malformed": 6, "empty": 1}
    assert w.n0.connected


def test_a_frame_whose_end_has_not_come_waits(make: Any) -> None:
    w = make(slots=16)
    r = w.fake.rx[0]
    w.fake.piece(r, b"x" * 2048, NS_MOREFRAG)
    w.fake.signal()
    w.pump()                                                # and is not woken for it again
    assert w.nic.recv() == []
    assert w.fake.rx[0].head == 0
    w.fake.piece(r, b"y", 0)
    w.fake.signal()
    w.pump()
    assert w.nic.recv() == [b"x" * 2048 + b"y"]


def test_frames_without_end(make: Any) -> None:
    """A ring full of slots that all go on; one of more slots than a packet can have pieces."""
    w = make(slots=256)
    r = w.fake.rx[0]
    for _ in range(255):
        w.fake.piece(r, b"x" * 100, NS_MOREFRAG)
    w.fake.put([frame(1)])
    w.pump()
    for _ in range(65):
        w.fake.piece(r, b"x", NS_MOREFRAG)
    w.fake.piece(r, b"x", 0)
    for _ in range(64):
        w.fake.piece(r, b"x" * 2048, NS_MOREFRAG if _ < 63 else 0)
    w.fake.put([frame(2)])
    w.pump()
    assert w.nic.recv() == [frame(1), frame(2)]
    assert w.drops() == {"malformed": 1, "oversize": 2}


@pytest.mark.parametrize("ring", ["tx", "rx"])
@pytest.mark.parametrize("tail", [16, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_tail_beyond_the_ring_ends_it(make: Any, ring: str, tail: int) -> None:
    w = make(slots=16)
    (w.fake.tx if ring == "tx" else w.fake.rx[0]).tail = tail
    w.fake.stalled = True
    if ring == "tx":
        w.nic.send([frame(1)])
        assert w.drops() == {"io": 1}
    else:
        os.eventfd_write(w.fake.fd, 1)
        w.pump()
    assert (w.n0.connected, w.n0.link_down, w.n0.error) == (False, True, "Input/output error")
    assert w.net.pump() == 0
    w.nic.send([frame(2)])


def test_tx_slots_that_lead_nowhere(make: Any) -> None:
    w = make()
    struct.pack_into("=I", w.fake.memory, w.fake.tx.slot(1), 0xFFFFFFF0)
    w.nic.send([frame(1), frame(2), frame(3)])
    assert w.drops() == {"io": 2}
    assert w.n0.link_down


@given(
    slots=st.lists(
        st.tuples(
            st.sampled_from([0, 1, 60, 2047, 2048, 2049, 65535]),
            st.sampled_from([0, 0, NS_MOREFRAG, 0xFFFF]),
            st.sampled_from([None, None, None, 0, 31, 32, 63, 64, 65, 1 << 31, 0xFFFFFFFF]),
        ),
        max_size=80,
    ),
    header=st.booleans(),
    tail=st.sampled_from([None, None, None, 0, 15, 32, 0xFFFFFFFF]),
)
def test_any_slots_at_all(slots: list[tuple[int, int, int | None]], header: bool, tail: int | None) -> None:
    """Whatever the memory says: the loop comes to rest, no frame is longer than allowed, and the client closes."""
    w = World("vale0:x" if header else "x", slots=32, headers=(12,))
    try:
        for at in range(0, len(slots), 31):
            for size, flags, index in slots[at : at + 31]:
                if (w.fake.rx[0].head - 1 - w.fake.rx[0].tail) % 32 == 0:
                    break
                w.fake.piece(w.fake.rx[0], b"", flags, size=size, index=index)
                struct.pack_into("=I", w.fake.memory, w.fake.tx.slot(at + size), index or 0)
            os.eventfd_write(w.fake.fd, 1)
            w.net.pump()
            w.net.pump()
        if tail is not None:
            w.fake.rx[0].tail = tail
            os.eventfd_write(w.fake.fd, 1)
            w.net.pump()
            w.net.pump()
        w.nic.send([frame(i, 3000) for i in range(20)])
        assert all(0 < len(f) <= 69632 for f in w.nic.recv())
    finally:
        w.close()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("offset", 1 << 40), ("offset", 4), ("tx_rings", 0xFFFFFFFF), ("rx_rings", 0xFFFFFFFF), ("ring_ofs", 0),
        ("slots", 0), ("slots", 1), ("slots", 0xFFFFFFFF), ("slots", 100000), ("buf_size", 0), ("buf_size", 0xFFFFFFFF),
        ("buf_ofs", -(1 << 40)), ("buf_ofs", 1 << 62), ("ring_ofs", 1 << 50),
        ("ring_ofs", -(1 << 20)), ("ring_ofs", 3), ("head", 16), ("head", 0xFFFFFFFF),
    ],
)  # fmt: skip
def test_a_layout_that_is_none(place: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    monkeypatch.setattr(netmap, "device", fake)
    at = {"tx_rings": ("=I", 64 + 24), "rx_rings": ("=I", 64 + 28), "ring_ofs": ("=q", 64 + 56), "buf_ofs": ("=q", fake.tx.at),
          "slots": ("=I", fake.tx.at + 8), "buf_size": ("=I", fake.tx.at + 12), "head": ("=I", fake.tx.at + 20)}  # fmt: skip
    if place == "offset":
        fake.offset = value & 0xFFFFFFFF or 0xFFFFFFF8
    else:
        struct.pack_into(at[place][0], fake.memory, at[place][1], value)
    with Net(clock=VirtualClock()) as net:
        with pytest.raises(HostError) as e:
            net.netdev_add("netmap,id=n0,ifname=eth0")
        assert e.value.text == "Failed to nm_open() eth0: No such device"
        del e
    fake.close()


# --------------------------------------------------------------------------------------------------------------- the port's end


@pytest.mark.parametrize("when", ["receiving", "sending"])
def test_the_port_goes(make: Any, when: str) -> None:
    w = make(port={"is_nic": True})
    w.fake.fails = errno.ENXIO
    if when == "receiving":
        w.fake.put([frame(1)])
        w.pump()
        assert w.nic.recv() == [frame(1)]
    else:
        w.nic.send([frame(1)])
        os.eventfd_write(w.fake.fd, 1)
        w.pump()
    assert (w.n0.connected, w.n0.link_down, w.nic.link_down, w.n0.error) == (False, True, True, "No such device or address")
    assert w.net.pump() == 0


def test_a_sync_that_was_interrupted_is_no_end(make: Any) -> None:
    w = make()
    w.fake.fails = errno.EINTR
    w.nic.send([frame(1)])
    w.fake.fails = 0
    w.nic.send([frame(2)])
    assert w.fake.sent == [frame(1), frame(2)]
    assert w.n0.connected


@pytest.mark.parametrize("state", ["idle", "unread", "peer full", "ring full", "gone", "unpaired"])
@pytest.mark.parametrize("collected", [False, True])
def test_it_can_be_closed_in_every_state(make: Any, state: str, collected: bool) -> None:
    w = make(port={"capacity": 2})
    w.net.netdev_del("n0")
    del w.n0
    [client] = netmap.open(w.net, "n1", netmap.Options(ifname="eth0"))
    client.pair(w.nic)
    if state in ("unread", "peer full"):
        w.fake.put([frame(i) for i in range(8)])
    if state == "peer full":
        w.pump()
    if state == "ring full":
        w.fake.stalled = True
        w.nic.send([frame(i) for i in range(40)])
        assert client.queued
    if state == "gone":
        w.fake.fails = errno.ENXIO
        os.eventfd_write(w.fake.fd, 1)
        w.pump()
        assert client.link_down
    if state == "unpaired":
        client.unpair()
    if not collected:
        client.close()
        client.close()
        w.fake.memory.close()                               # nobody holds it any more
    del client
    w.nic.send([frame(1)])


# --------------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("ifname", "name", "ring", "mode"),
    [
        ("eth0", b"eth0", 0, 1), ("netmap:eth0", b"eth0", 0, 1), ("netmap:eth0-3", b"eth0", 3, 4), ("eth0^", b"eth0", 0, 2),
        ("eth0*", b"eth0", 0, 3),
        ("netmap:a{12", b"a", 12, 5), ("netmap:a}0", b"a", 0, 6), ("vale1:2", b"vale1:2", 0, 1), ("vale-x:y", b"vale-x:y", 0, 1),
    ],
)  # fmt: skip
def test_what_the_kernel_is_asked(make: Any, ifname: str, name: bytes, ring: int, mode: int) -> None:
    w = make(ifname=ifname)
    assert w.fake.paths == ["/dev/netmap"]
    fields = w.fake.requests[0]
    assert (fields[0].rstrip(b"\0"), fields[1], fields[8], fields[13]) == (name, 11, ring | 0x1000, mode | 0x8000)
    assert (w.n0.model, w.n0.info_str) == ("netmap", "")
    assert netmap.NMREQ.size == 60
    assert bool(w.fake.requests[1:]) == name.startswith(b"vale")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("", "Parameter 'ifname' is missing"),
        ("ifname=eth0,devname=/nonexistent/netmap", "Failed to nm_open() eth0: No such file or directory"),
        ("ifname=eth0,devname=/dev/null", "Failed to nm_open() eth0: Inappropriate ioctl for device"),
        ("ifname=", "Failed to nm_open() : Invalid argument"),
        ("ifname=much-too-long-for-one", "Failed to nm_open() much-too-long-for-one: Invalid argument"),
        ("ifname=netmap:eth0{", "Failed to nm_open() netmap:eth0{: Invalid argument"),
        ("ifname=netmap:eth0-9999", "Failed to nm_open() netmap:eth0-9999: Invalid argument"),
        ("ifname=eth0,foo=1", "Invalid parameter 'foo'"),
    ],
)
def test_bad_options(options: str, text: str) -> None:
    with Net(clock=VirtualClock()) as net, pytest.raises((OptionError, HostError)) as e:
        net.netdev_add(f"netmap,id=n0,{options}")
    assert e.value.text == text
    if "nonexistent" in options:
        assert "modprobe netmap" in e.value.hint
