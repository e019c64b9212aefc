"""Every kind of netdev is held to the same: one suite, and one adapter a kind (adapters.py)."""

import ctypes
import gc
import os
import select
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qnet import DuplicateId, Error, Net, OptionError
from qnet.kinds import NET_CLIENT_INIT
from qnet.options import fields_of
from qnet.testing import Port

from .adapters import ADAPTERS, MAX_FRAME, WITHOUT, Rig, frame, kinds

Rigs = Callable[..., Rig]

every = pytest.mark.parametrize("kind", kinds())
raw = pytest.mark.parametrize("kind", kinds(raw=True))              # the other end sends and receives any frames
mortal = pytest.mark.parametrize("kind", kinds(mortal=True))
stalling = pytest.mark.parametrize("kind", kinds(stalls=True))
holding = pytest.mark.parametrize("kind", kinds(raw=True, holds=True))


@pytest.fixture
def rigs(tmp_path: Path) -> Iterator[Rigs]:
    """rigs(kind, **options of nic0): closed when the test is over."""
    made: list[Rig] = []

    def make(kind: str, **nic: Any) -> Rig:
        path = tmp_path / str(len(made))
        path.mkdir()
        made.append(Rig(kind, path, **nic))
        return made[-1]

    yield make
    for rig in made:
        if vars(rig):
            rig.close()


def numbers(frames: list[bytes]) -> list[int]:
    return [struct.unpack_from("!I", f, 14)[0] for f in frames]


def fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_every_kind_has_its_adapter() -> None:
    assert set(ADAPTERS) | set(WITHOUT) == set(NET_CLIENT_INIT)
    assert not set(ADAPTERS) & set(WITHOUT)
    assert list(ADAPTERS) == sorted(ADAPTERS)


# ---------------------------------------------------------------------------------------------------------------------- open


@every
def test_it_opens(kind: str, rigs: Rigs) -> None:
    rig = rigs(kind)
    model = rig.end.model or kind
    assert (rig.n0.name, rig.n0.model) == ("n0", model)
    assert rig.net.client("n0") is rig.n0
    [shown] = [s for s in rig.net.stats() if s["name"] == "n0"]
    assert (shown["type"], shown["index"]) == (model, 0)
    rig.end.ping(rig)


@every
def test_its_id_is_taken_until_it_goes(kind: str, rigs: Rigs) -> None:
    rig = rigs(kind)
    with pytest.raises(DuplicateId, match="Duplicate ID 'n0'"):
        rig.net.netdev_add("null,id=n0")
    if kind != "dump":                              # -net's go with the network (S56)
        rig.net.netdev_del("n0")
        assert rig.n0.closed
        rig.net.netdev_add("null,id=n0")


def spec(kind: str, options: str) -> Callable[[Net], object]:
    row = NET_CLIENT_INIT[kind]
    if row.netdev:
        return lambda net: net.netdev_add(f"{kind},id=n1" + (f",{options}" if options else ""))
    return lambda net: net.net_add(f"{kind},id=n1" + (f",{options}" if options else ""))


@every
def test_options_it_does_not_have(kind: str) -> None:
    """Unknown names, and values of a wrong type for each option that has one; nothing is left behind (nothing_left sees to fds)."""
    before = fds()
    needs = ADAPTERS[kind].needs
    with Net() as net:
        held = fds()
        with pytest.raises(OptionError, match="no-such-option"):
            spec(kind, f"{needs}no-such-option=1")(net)
        for name, option in fields_of(NET_CLIENT_INIT[kind].room.Options).items():
            if option.kind.label.startswith(("uint", "int", "bool", "size")):
                with pytest.raises(OptionError, match=name):
                    spec(kind, f"{needs}{name}=nonsense")(net)
        for text in ("", "id=", "id=1n", "id=n 0"):
            if NET_CLIENT_INIT[kind].netdev:
                with pytest.raises(OptionError, match="'id'"):
                    net.netdev_add(f"{kind},{needs}{text}".rstrip(","))
        assert net.clients == ()
        assert net.stats() == []
        assert fds() == held
    assert fds() == before


@every
def test_options_that_make_no_sense(kind: str) -> None:
    with Net() as net:
        held = fds()
        for options, text in ADAPTERS[kind].bad:
            with pytest.raises(Error) as e:
                spec(kind, options)(net)
            assert text in str(e.value), options
            assert net.clients == ()
            assert fds() == held


# ------------------------------------------------------------------------------------------------------------------- traffic


@raw
def test_frames_of_every_size_go_both_ways(kind: str, rigs: Rigs) -> None:
    rig = rigs(kind)
    rig.round_trip([frame(size, size) for size in rig.end.sizes])
    assert rig.drops() == {}


@raw
def test_frames_in_pieces(kind: str, rigs: Rigs) -> None:
    """A NIC's frame lies in as many places as its guest likes."""
    rig = rigs(kind)
    f = frame(1, 1514)
    rig.nic.send([[f[:1], f[1:14], f[14:700], f[700:]], [f[i * 24 : i * 24 + 24] for i in range(63)] + [f[63 * 24 :]]])
    assert rig.at_end(2) == [f, f]


@raw
def test_many_frames_keep_their_order(kind: str, rigs: Rigs) -> None:
    rig = rigs(kind)
    n = 0
    for size in (60, 1514, 60):
        for _ in range(20):
            frames = [frame(n + i, size) for i in range(rig.end.burst)]
            n += rig.end.burst
            rig.nic.send(frames)
            assert rig.at_end(len(frames)) == frames
            assert rig.into_nic(frames) == frames
    assert rig.drops() == {}
    stats = rig.n0.stats()
    assert (stats["tx_packets"], stats["rx_packets"]) == (n, n)
    assert stats["tx_bytes"] == stats["rx_bytes"] == n // 3 * (60 + 1514 + 60)


@every
def test_empty_and_oversize_frames_are_dropped_and_the_others_go_on(kind: str, rigs: Rigs) -> None:
    rig = rigs(kind)
    rig.nic.send([b"", bytes(MAX_FRAME + 1)])
    rig.nic.send_claim(0xFFFFFFFF)
    drops = rig.drops() if rig.n0.peer is rig.nic else rig.nic.peer.stats()["drops"]
    assert drops == {"empty": 1, "oversize": 2}
    rig.end.ping(rig)


@every
def test_runts_do_no_harm(kind: str, rigs: Rigs) -> None:
    """Each is passed on, or dropped and counted, and what follows goes its way."""
    rig = rigs(kind)
    for size in range(1, 18):
        rig.nic.send([frame(size, size)])
    rig.rest()
    if rig.end.raw:
        rig.nic.send([frame(4711)])
        got: list[bytes] = []
        rig.until(lambda: got.extend(rig.end.take()) or frame(4711) in got)
        arrived = [f for f in got if f != frame(4711)]
        assert len(arrived) + sum(rig.drops().values()) <= 17
        for f in arrived:                           # whole, or padded with zeros
            assert any(f[:size] == frame(size, size) and not any(f[size:]) for size in range(1, 18)), f
        return
    if kind != "dump":
        rig.end.ping(rig)


# ------------------------------------------------------------------------------------------------------------ who is too slow


@stalling
def test_a_full_peer(kind: str, rigs: Rigs) -> None:
    """What finds no room waits, so much of it; the rest is dropped as "queue-full"; then everything goes on, in order."""
    rig = rigs(kind)
    rig.n0.queue_limits = (100, 1 << 20)
    rig.end.stall()
    n = 0
    while not rig.drops():
        rig.nic.send([frame(n + i, 1514) for i in range(64)])
        n += 64
        rig.net.pump()
        assert n < 1_000_000
    assert rig.drops().keys() == {"queue-full"}
    assert rig.n0.queued <= 100
    lost = rig.drops()["queue-full"]
    rig.end.go_on()
    got: list[bytes] = []
    if rig.end.lossless:
        got = rig.at_end(n - lost)
        assert numbers(got) == list(range(n - lost))
    rig.until(lambda: (rig.end.take(), rig.n0.queued == 0)[1])
    rig.gets_through(frame(n))
    assert rig.n0.stats()["drops"] == {"queue-full": lost}


@stalling
def test_a_sender_that_can_wait_loses_nothing_to_a_full_peer(kind: str, rigs: Rigs) -> None:
    rig = rigs(kind, flow_control=True)
    rig.end.stall()
    n = 0
    while not rig.nic.backlog:
        rig.nic.post([frame(n + i, 1514) for i in range(64)])
        n += 64
        rig.net.pump()
        assert n < 1_000_000
    rig.end.go_on()
    if rig.end.lossless:
        assert numbers(rig.at_end(n)) == list(range(n))
    rig.until(lambda: (rig.end.take(), rig.nic.backlog == 0)[1])
    assert rig.drops() == {}


@stalling
def test_a_slow_peer_holds_up_nobody_else(kind: str, rigs: Rigs) -> None:
    """On a hub only its own frames wait or drop (users' first complaint: one slow machine stops the others)."""
    rig = rigs(kind)
    rig.nic.unpair()
    got: list[int] = []
    quick = rig.net.client("py", on_frames=lambda frames: got.extend(numbers([bytes(f) for f in frames])))
    for i, name in enumerate(("n0", quick.name)):
        if not (kind == "hubport" and name == "n0"):
            rig.net.netdev_add("hubport", id=f"h{i}", hubid=5, netdev=name)
        else:                                       # two hubs, joined
            joint = rig.net.netdev_add("hubport", id=f"h{i}", hubid=5)
            joint.pair(rig.n0)
    rig.nic.pair(rig.net.netdev_add("hubport,id=h2,hubid=5"))
    rig.end.stall()
    n = 0
    while not rig.n0.stats()["drops"] and n < 30_000:
        rig.nic.send([frame(n + i, 1514) for i in range(64)])
        n += 64
        rig.net.pump()
    assert got == list(range(n))
    assert quick.stats()["drops"] == {}
    rig.end.go_on()
    rig.nic.send([frame(n)])
    assert got[-1] == n


@holding
def test_while_the_nic_is_full_the_other_end_waits(kind: str, rigs: Rigs) -> None:
    """n0 reads no more, wakes up no more, and loses nothing."""
    rig = rigs(kind, capacity=0)
    sent = 0
    for _ in range(1000):
        k = rig.end.put([frame(sent + i) for i in range(64)])
        sent += k
        rig.rest()
        if k < 64:
            break
    wakeups = rig.net.loop.wakeups
    assert select.select([rig.net.fileno()], [], [], 0) == ([], [], [])
    assert rig.nic.recv() == []
    assert rig.net.loop.wakeups == wakeups
    rig.nic.room(None)
    assert numbers(rig.at_nic(sent)) == list(range(sent))
    assert rig.drops() == {}
    assert rig.nic.breaches == []


# ---------------------------------------------------------------------------------------------------- the other end's comings


@mortal
def test_the_other_end_dies_and_returns(kind: str, rigs: Rigs) -> None:
    rig = rigs(kind)
    rig.end.ping(rig)
    rig.end.kill()
    rig.rest()
    for i in range(0, 1000, 50):
        rig.nic.send([frame(i + k, 1514) for k in range(50)])
        rig.rest()
    wakeups = rig.net.loop.wakeups
    assert select.select([rig.net.fileno()], [], [], 0) == ([], [], []), "it spins"
    assert rig.net.loop.wakeups == wakeups
    rig.nic.recv()
    rig.reopen()
    rig.end.ping(rig)


@mortal
def test_it_dies_while_frames_wait(kind: str, rigs: Rigs) -> None:
    rig = rigs(kind)
    rig.n0.queue_limits = (100, 1 << 20)
    rig.end.stall()
    for i in range(0, 3000, 50):
        rig.nic.send([frame(i + k, 1514) for k in range(50)])
    rig.end.kill()
    rig.rest()
    assert rig.n0.queued <= 100
    rig.reopen()
    rig.end.ping(rig) if not rig.n0.queued else rig.until(lambda: (rig.end.take(), rig.n0.queued == 0)[1])


# ---------------------------------------------------------------------------------------------------------------- link, close


@raw
def test_a_link_that_is_down_passes_nothing(kind: str, rigs: Rigs) -> None:
    rig = rigs(kind)
    rig.net.set_link("n0", False)
    rig.nic.send([frame(i) for i in range(10)])
    sent = 0
    while sent < 10:
        sent += rig.end.put([frame(100 + i) for i in range(sent, 10)])
        rig.rest()
    rig.rest()
    assert rig.nic.recv() == []
    lost = rig.drops()
    assert lost.keys() == {"link-down"}
    assert lost["link-down"] >= 10
    rig.net.set_link("n0", True)
    rig.nic.send([frame(1)])
    assert rig.at_end(1) == [frame(1)]
    rig.until(lambda: rig.end.put([frame(2)]) or rig.net.pump())
    rig.until(lambda: frame(2) in rig.nic.recv())


STATES = ("idle", "used", "nic full", "end full", "dead", "link down", "unpaired", "paused")


@every
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("how", ["del", "net", "twice"])
def test_it_can_be_closed_in_every_state(kind: str, state: str, how: str, rigs: Rigs) -> None:
    """nothing_left sees to it that clients and descriptors go with it."""
    rig = rigs(kind, capacity=0 if state == "nic full" else None)
    if state == "used" and kind != "dump":
        rig.end.ping(rig)
    if state == "nic full" and rig.end.raw:
        rig.end.put([frame(i) for i in range(64)])
        rig.rest()
    if state == "end full":
        if rig.end.stalls:
            rig.end.stall()
        rig.nic.send([frame(i, 1514) for i in range(1000)])
    if state == "dead" and rig.end.mortal:
        rig.end.kill()
        rig.rest()
    if state == "link down":
        rig.net.set_link("n0", False)
    if state == "unpaired":
        rig.nic.unpair()
    if state == "paused":
        rig.net.pause()
        rig.nic.send([frame(1)])
    if how == "del" and kind != "dump":
        rig.net.netdev_del("n0")
        rig.rest()
    elif how == "twice":
        rig.n0.close()
        rig.n0.close()
        rig.rest()
    else:
        rig.net.close()
    assert rig.n0.closed
    rig.nic.send([frame(1)])                        # to nobody
    if state == "end full" and rig.end.stalls:
        rig.end.go_on()


@every
def test_it_dies_with_a_network_that_nobody_closed(kind: str, rigs: Rigs) -> None:
    rig = rigs(kind)
    end, nic = rig.end, rig.nic
    nic.close()
    rig.net.loop.stop()
    vars(rig).clear()
    end.__dict__.pop("net").close()
    end.close()


# ------------------------------------------------------------------------------------------------------------------ resources


class Mallinfo(ctypes.Structure):
    """struct mallinfo2."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks",
                                                          "uordblks", "fordblks", "keepcost"))  # fmt: skip


def used() -> int:
    """Bytes that malloc has given out, without what waits for the garbage collector."""
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Mallinfo
    info = libc.mallinfo2()
    return int(info.uordblks + info.hblkhd)


@every
def test_descriptors_and_memory_come_back(kind: str, rigs: Rigs) -> None:
    rig = rigs(kind)
    if kind == "dump":
        return                                      # -net's go with the network, so there is no again
    rig.end.ping(rig)

    def again() -> None:
        rig.net.netdev_del("n0")
        rig.nic.close()
        rig.nic = Port(rig.net.loop, "nic0")
        rig.n0 = rig.end.open()
        rig.plug_in()
        rig.end.ping(rig)

    for _ in range(3):
        again()
    before, descriptors = used(), len(fds())
    for _ in range(20):
        again()
    assert len(fds()) == descriptors
    assert used() - before < 20 * 1024, "memory grows by more than a KiB a round"


@every
def test_statistics_tell_all(kind: str, rigs: Rigs) -> None:
    rig = rigs(kind)
    if kind != "dump":
        rig.end.ping(rig)
    else:
        rig.nic.send([frame(1)])
    [stats] = [s for s in rig.net.stats() if s["name"] == "n0"]
    assert stats.keys() >= {"name", "type", "index", "peer", "tx_packets", "tx_bytes", "rx_packets", "rx_bytes", "syscalls", "wakeups",
                            "queued", "drops"}  # fmt: skip
    assert stats["rx_packets"] >= 1
    assert stats["rx_bytes"] >= stats["rx_packets"]
    if rig.end.fds():
        assert stats["syscalls"] >= 1
        assert stats["wakeups"] >= 1


def cpu(thread: threading.Thread) -> int:
    """Nanoseconds of CPU time the thread has used."""
    assert thread.ident is not None
    return time.clock_gettime_ns(time.pthread_getcpuclockid(thread.ident))


@pytest.mark.parametrize("root", [False, pytest.param(True, marks=pytest.mark.root)])
@pytest.mark.parametrize("state", ["connected", "nic full", "dead"])
def test_idle_costs_nothing(root: bool, state: str, rigs: Rigs) -> None:
    """Over two seconds no network's thread wakes up or uses CPU time: one network for each kind, all at once."""
    threads = []
    nets = []
    for kind, adapter in ADAPTERS.items():
        if (pytest.mark.root in adapter.marks) != root:
            continue
        rig = rigs(kind, capacity=0 if state == "nic full" else None)
        if state == "dead" and rig.end.mortal:
            rig.end.kill()
        elif state == "nic full" and rig.end.raw:
            rig.end.put([frame(i) for i in range(64)])
        elif state == "connected" and kind != "dump":
            rig.end.ping(rig)
        rig.rest()
        others = set(threading.enumerate())
        rig.net.start()
        threads += set(threading.enumerate()) - others
        nets.append(rig.net)

    def measure() -> list[tuple[str, int, int]]:
        """Kind, ns of CPU time and wake-ups of each."""
        return [(net.clients[0].model, cpu(thread), net.loop.wakeups) for net, thread in zip(nets, threads, strict=True)]

    settled: list[tuple[str, int, int]] = []
    while settled != (settled := measure()):        # what they did to begin with is over
        time.sleep(0.1)
    time.sleep(2)
    assert measure() == settled
    for net in nets:
        net.stop()
