"""The cases of peer.py: what a kick is, how its result is checked, and how it is timed.

A case makes a Job on a System. Making it does the work once and checks all of it (counts, lengths, payload, checksums); after the
timing the counters have to tell of every packet that was kicked.
"""

import gc
import statistics
from collections.abc import Callable, Sequence
from ctypes import CDLL
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from peer_driver import (
    BROADCAST,
    FLAG_PSH_ACK,
    MACS,
    SLOT,
    TCP_HEADERS,
    TPR,
    TPT,
    TSO_BUFFERS,
    TSO_SLOT,
    TSO_SLOTS,
    TX_BUFFERS,
    Card,
    Shape,
    System,
    check,
    checksums_right,
    context,
    data,
    legacy,
    raw_frame,
    tcp_frame,
)
from peer_floor import FloorJob

S = TypeVar("S", bound=System)
MakeSystem = Callable[..., S]

RING, SMALL_RING = 4096, 256
TSO_PAYLOAD, TSO_MSS, TSO_PIECE = 64000, 1460, 4096
TSO_FRAMES = -(-TSO_PAYLOAD // TSO_MSS)
TSO_SEGMENTS = 90               # a kick; 3960 frames, so that they fit into a receive ring


class Timed(Protocol):
    """What can be measured: a Job, or the floor under it."""

    packets: int

    def kick(self) -> int: ...
    def idle(self) -> int: ...
    def finish(self) -> None: ...


class Job(Generic[S]):
    """Work that is ready to be kicked, again and again."""

    def __init__(self, system: S, sender: Card, receivers: Sequence[Card], shape: Shape) -> None:
        self.system, self.sender, self.receivers, self.shape = system, sender, receivers, shape
        self.packets, self.descriptors = shape.packets, shape.buffers * shape.descriptors
        self.kicks = 0
        self.before = system.delivered()
        for card in (sender, *receivers):
            card.read(TPT)
            card.read(TPR)

    def prepare(self) -> None:
        """Fresh receive buffers for one kick."""
        for card in self.receivers:
            card.offer(self.packets)

    def doorbell(self) -> int:
        """Send it all; ns that it took."""
        self.kicks += 1
        return self.sender.kick(self.descriptors)

    def kick(self) -> int:
        self.prepare()
        return self.doorbell()

    def idle(self) -> int:
        """The same doorbell with nothing to do."""
        return self.sender.kick(0)

    def floor(self, library: CDLL) -> Timed:
        """The floor under this job."""
        return FloorJob(library, self.shape, len(self.receivers))

    def finish(self) -> None:
        """Check that all packets are accounted for, and close the system."""
        total = self.kicks * self.packets
        try:
            self.sender.check_sent(total)
            for card in self.receivers:
                got = card.read(TPR)
                check(got == total, f"receiver {card.nic}: TPR counts {got} packets, not {total}")
            after = self.system.delivered()
            if self.before and after:
                frames, octets = after[0] - self.before[0], after[1] - self.before[1]
                check(frames == total, f"the sink got {frames} frames, not {total}")
                want = self.kicks * self.shape.octets
                check(octets == want, f"the sink got {octets} bytes, not {want}")
        finally:
            self.system.close()


def tx_job(make: MakeSystem[S], size: int, ring: int) -> Job[S]:
    """a: legacy descriptors, one kick of ring - 1 frames to a sink."""
    return _plain_job(make, size, ring, 0)


def _plain_job(make: MakeSystem[S], size: int, ring: int, receivers: int) -> Job[S]:
    system = make(1 + receivers, receivers == 0)
    try:
        dst = BROADCAST if receivers > 1 else MACS[1]
        sender = Card(system, 0, ring)
        cards = [Card(system, 1 + i, 8, ring) for i in range(receivers)]
        frames = [raw_frame(size, k, dst) for k in range(ring)]
        for k, frame in enumerate(frames):
            system.mem[TX_BUFFERS + k * SLOT : TX_BUFFERS + k * SLOT + size] = frame
        sender.load(b"".join(legacy(TX_BUFFERS + k * SLOT, size) for k in range(ring)))
        n = ring - 1
        job = Job(system, sender, cards, Shape(TX_BUFFERS, SLOT, ring, n, size))
        job.kick()
        for card in cards:
            for k, frame in enumerate(frames[:n]):
                check(card.received(k) == frame, f"receiver {card.nic}, frame {k}: other bytes than were sent")
    except BaseException:
        system.close()
        raise
    return job


def pair_job(make: MakeSystem[S], size: int, ring: int) -> Job[S]:
    """b1: to another e1000."""
    return _plain_job(make, size, ring, 1)


def broadcast_job(make: MakeSystem[S], size: int, ring: int) -> Job[S]:
    """b2: broadcast to two others."""
    return _plain_job(make, size, ring, 2)


def checksum_job(make: MakeSystem[S], size: int, ring: int) -> Job[S]:
    """c1: one context, then a data descriptor with IXSM and TXSM a frame."""
    _checksum_setup(make, size, ring, receiver=True).finish()
    return _checksum_setup(make, size, ring, receiver=False)


def _checksum_setup(make: MakeSystem[S], size: int, ring: int, *, receiver: bool) -> Job[S]:
    system = make(1 + receiver, not receiver)
    try:
        sender = Card(system, 0, ring)
        cards = [Card(system, 1, 8, ring)] if receiver else []
        frames = [tcp_frame(size - TCP_HEADERS, k) for k in range(ring)]
        for k, frame in enumerate(frames):
            system.mem[TX_BUFFERS + k * SLOT : TX_BUFFERS + k * SLOT + size] = frame
        sender.load(context() * ring)
        sender.kick(1)
        sender.load(b"".join(data(TX_BUFFERS + k * SLOT, size) for k in range(ring)))
        n = ring - 1
        job = Job(system, sender, cards, Shape(TX_BUFFERS, SLOT, ring, n, size, summed=True))
        job.kick()
        for card in cards:
            for k in range(n):
                got, want = card.received(k), frames[(1 + k) % ring]
                check(len(got) == size and got[TCP_HEADERS:] == want[TCP_HEADERS:], f"frame {k}: other payload than was sent")
                check(checksums_right(got), f"frame {k}: wrong checksum")
    except BaseException:
        system.close()
        raise
    return job


def tso_sink_job(make: MakeSystem[S], size: int, ring: int) -> Job[S]:
    """c3: TSO to a sink that takes plain frames only."""
    _tso_setup(make, ring, receiver=True).finish()
    return _tso_setup(make, ring, receiver=False)


def tso_pair_job(make: MakeSystem[S], size: int, ring: int) -> Job[S]:
    """c5: TSO to another e1000."""
    return _tso_setup(make, ring, receiver=True)


def tso_descriptors(address: int) -> bytes:
    """A context, the headers, and the payload in pieces of 4 KiB."""
    total = TCP_HEADERS + TSO_PAYLOAD
    pieces = [(0, TCP_HEADERS)] + [(at, min(TSO_PIECE, total - at)) for at in range(TCP_HEADERS, total, TSO_PIECE)]
    out = [data(address + at, length, last=at + length == total, tse=True) for at, length in pieces]
    return b"".join([context(TSO_PAYLOAD, TSO_MSS), *out])


def segment_ring(ring: int) -> tuple[int, int, int, int]:
    """Of a ring of at most so many descriptors: its descriptors, descriptors a segment, buffers, and segments a kick."""
    per = len(tso_descriptors(0)) // 16
    ring = next(n for n in range(ring, 0, -1) if n % per == 0 and n % 8 == 0)
    return ring, per, min(ring // per, TSO_SLOTS), min((ring - 1) // per, TSO_SEGMENTS)


def _tso_setup(make: MakeSystem[S], ring: int, *, receiver: bool) -> Job[S]:
    ring, per, slots, segments = segment_ring(ring)
    system = make(1 + receiver, not receiver)
    try:
        sender = Card(system, 0, ring)
        cards = [Card(system, 1, 8, RING)] if receiver else []
        for k in range(slots):
            at = TSO_BUFFERS + k * TSO_SLOT
            frame = tcp_frame(TSO_PAYLOAD, k, segment=True)
            system.mem[at : at + len(frame)] = frame
        sender.load(b"".join(tso_descriptors(TSO_BUFFERS + (k % slots) * TSO_SLOT) for k in range(ring // per)))
        shape = Shape(TSO_BUFFERS, TSO_SLOT, slots, segments, TSO_PAYLOAD, per, TSO_MSS, TCP_HEADERS, summed=True)
        job = Job(system, sender, cards, shape)
        job.kick()
        for card in cards:
            for k in range(segments):
                _check_segment(card, k * TSO_FRAMES, k % slots)
    except BaseException:
        system.close()
        raise
    return job


def _check_segment(card: Card, first: int, seq: int) -> None:
    """One segment arrived as TSO_FRAMES frames, from `first` on."""
    whole = tcp_frame(TSO_PAYLOAD, seq, segment=True)[TCP_HEADERS:]
    for k in range(TSO_FRAMES):
        got, at = card.received(first + k), k * TSO_MSS
        last = k == TSO_FRAMES - 1
        flags = FLAG_PSH_ACK if last else FLAG_PSH_ACK & ~8
        check(got[TCP_HEADERS:] == whole[at : at + TSO_MSS], f"frame {k} of a segment: other payload than was sent")
        check(int.from_bytes(got[38:42], "big") == 1000 + seq + at, f"frame {k} of a segment: wrong sequence number")
        check(int.from_bytes(got[18:20], "big") == seq + k, f"frame {k} of a segment: wrong IP identification")
        check(got[47] == flags, f"frame {k} of a segment: wrong TCP flags")
        check(checksums_right(got), f"frame {k} of a segment: wrong checksum")


class TimedJob(Timed, Protocol):
    def floor(self, library: CDLL) -> Timed: ...


class Goal(NamedTuple):
    """ns a packet on the machine where QEMU took `qemu`; what counts is the ratio."""

    qemu: float
    goal: float
    done: float


class Case(NamedTuple):
    name: str
    text: str
    job: Callable[[MakeSystem[Any], int, int], "TimedJob"]
    size: int
    ring: int
    goal: Goal | None = None


A1 = "e1000 TX, ring of 4096, to a sink"
A1R = "e1000 TX, ring of 256, to a sink"
B1 = "e1000 to e1000 over a hub, rings of 4096"
B1R = "e1000 to e1000 over a hub, rings of 256"
B2 = "e1000 to two e1000 over a hub, a sent packet"
C1 = "e1000 TX, IP and TCP checksum inserted, to a sink"
C3 = "e1000 TSO 64000/1460 to a sink without GSO, a frame"
C5 = "e1000 TSO 64000/1460 to e1000 over a hub, a frame"

CASES = [
    Case("a1.60", A1, tx_job, 60, RING, Goal(78, 8, 16)),
    Case("a1.1514", A1, tx_job, 1514, RING, Goal(138, 8, 16)),
    Case("a1r.60", A1R, tx_job, 60, SMALL_RING),
    Case("a1r.1514", A1R, tx_job, 1514, SMALL_RING),
    Case("b1.60", B1, pair_job, 60, RING, Goal(243, 28, 50)),
    Case("b1.1514", B1, pair_job, 1514, RING, Goal(365, 140, 180)),
    Case("b1r.60", B1R, pair_job, 60, SMALL_RING, Goal(208, 18, 36)),
    Case("b1r.1514", B1R, pair_job, 1514, SMALL_RING, Goal(253, 48, 75)),
    Case("b2.60", B2, broadcast_job, 60, RING),
    Case("b2.1514", B2, broadcast_job, 1514, RING),
    Case("c1.60", C1, checksum_job, 60, RING),
    Case("c1.1514", C1, checksum_job, 1514, RING, Goal(592, 85, 130)),
    Case("c3", C3, tso_sink_job, 1514, RING, Goal(588, 90, 130)),
    Case("c5", C5, tso_pair_job, 1514, RING),
]


def pick(only: str | None, cases: Sequence[Case]) -> list[Case]:
    """Some of the cases by a comma list of names: "b" or "b1" or "b1.60". ValueError for one that matches nothing."""
    if not only:
        return [*cases]
    wanted = only.split(",")
    chosen = []
    for word in wanted:
        hits = [c for c in cases if word in (c.name, c.name.partition(".")[0], c.name[0])]
        if not hits:
            raise ValueError(f"no case is called {word!r}; there are {', '.join(c.name for c in cases)}")
        chosen += hits
    return [c for c in cases if c in chosen]


def measure(jobs: Sequence[Timed], repeats: int, target_ms: float) -> list[list[float]]:
    """ns a packet of each job, `repeats` times; the jobs take turns, so that a machine that changes its speed does so for all.

    One repeat is k pairs of an idle doorbell and a kick; it counts (median kick - median idle) / packets.
    """
    values: list[list[float]] = [[] for _ in jobs]
    gc.collect()
    gc.disable()
    try:
        pairs = []
        for job in jobs:
            warm = statistics.median(job.kick() + job.idle() for _ in range(5))
            pairs.append(max(5, min(400, int(target_ms * 1e6 / warm))))
        for _ in range(repeats):
            for job, k, out in zip(jobs, pairs, values, strict=True):
                job.idle()
                job.kick()
                idle, kick = [], []
                for _ in range(k):
                    idle.append(job.idle())
                    kick.append(job.kick())
                out.append((statistics.median(kick) - statistics.median(idle)) / job.packets)
    finally:
        gc.enable()
    return values
