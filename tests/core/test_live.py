"""Whatever happens: each packet arrives once and in order, or is counted with a reason; nothing waits for ever; nothing is left over."""

import gc
import itertools
import threading
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnet._client import live
from qnet._loop import Loop, VirtualClock
from qnet.backends._hub import Hub, HubPort
from qnet.testing import Gate, LoopBack, Port, Sink, Source

# ------------------------------------------------------------------------------------------------------ one link, any history

sides = st.integers(0, 1)
counts = st.one_of(st.integers(1, 5), st.integers(60, 140))
operations = st.one_of(
    st.tuples(st.just("send"), sides, counts),
    st.tuples(st.just("post"), sides, counts),
    st.tuples(st.just("room"), sides, st.one_of(st.none(), st.integers(0, 100))),
    st.tuples(st.just("flush"), sides),
    st.tuples(st.just("purge"), sides),
    st.tuples(st.just("link"), sides, st.booleans()),
    st.tuples(st.just("limits"), sides, st.sampled_from([0, 1, 10, 100, 10000])),
    st.tuples(st.just("run"), st.booleans()),
    st.tuples(st.just("pair"), st.booleans()),
    st.tuples(st.just("gate"), st.integers(0, 3), st.sampled_from(["pass", "drop", "hold"])),
    st.tuples(st.just("gate-on"), st.integers(0, 3), st.booleans()),
)
ends = st.fixed_dictionaries({
    "capacity": st.one_of(st.none(), st.integers(0, 70)), "asks": st.booleans(), "flow_control": st.booleans(),
    "reaction": st.sampled_from(["keep", "flush", "send"]), "min_frame": st.sampled_from([0, 60]), "is_nic": st.booleans(),
})  # fmt: skip


class History:
    """Two linked Ports with up to four filters. Frames carry their sender and number."""

    def __init__(self, options, filters):
        self.net = Loop(clock=VirtualClock())
        self.ports = [Port(self.net, str(i), **option) for i, option in enumerate(options)]
        self.ports[0].pair(self.ports[1])
        self.gates = []
        for side, queue in filters:
            self.gates.append(Gate(self.ports[side]))
            self.gates[-1].insert(queue)
        self.numbers = [itertools.count(), itertools.count()]
        self.made = [0, 0]
        self.kept = [[], []]                                                    # refused by send(): to be sent again, in order
        self.got = [[], []]

    def frames(self, side, n):
        """Short ones, which the peer may want padded, and now and then one without bytes, which must be dropped once."""
        frames = []
        for _ in range(n):
            number = next(self.numbers[side])
            frames += [bytes([side]) + number.to_bytes(4, "big") + bytes(40)] + [b""] * (number % 5 == 4)
        self.made[side] += len(frames)
        return frames

    def send(self, side, n):
        frames = self.kept[side] + self.frames(side, n)
        if self.ports[side].backlog:                                            # behind what it posted, or it would overtake itself
            self.ports[side].post(frames)
            self.kept[side] = []
        else:
            self.kept[side] = frames[self.ports[side].send(frames):]

    def post(self, side, n):
        frames = self.kept[side] + self.frames(side, n)
        self.kept[side] = []
        self.ports[side].post(frames)

    def let_go(self, gate):
        """What is held goes first, also what arrives because of it."""
        for _ in range(1000):
            if not gate.held:
                break
            gate.release()

    def gate(self, i, mode):
        if i < len(self.gates):
            if mode != "hold":
                self.let_go(self.gates[i])
            self.gates[i].mode = mode

    def gate_on(self, i, on):
        if i < len(self.gates):
            self.let_go(self.gates[i])
            self.gates[i].on = on

    def apply(self, operation):
        name, *args = operation
        if name in ("send", "post"):
            getattr(self, name)(*args)
        elif name == "room":
            self.ports[args[0]].room(args[1])
        elif name == "flush":
            self.ports[args[0]].flush()
        elif name == "purge":
            self.ports[args[0]].purge()
        elif name == "link":
            self.ports[args[0]].set_link(args[1])
        elif name == "limits":
            self.ports[args[0]].queue_limits = (args[1], 1 << 20)
        elif name == "run":
            self.net.running = args[0]
        elif name == "gate":
            self.gate(*args)
        elif name == "gate-on":
            self.gate_on(*args)
        elif args[0] != (self.ports[0].peer is not None):
            self.ports[0].pair(self.ports[1]) if args[0] else self.ports[0].unpair()
        self.check()

    def check(self):
        """Conservation, at any time."""
        for side, port in enumerate(self.ports):
            self.got[side] += port.recv()
        stats = [port.stats() for port in self.ports]
        sent = sum(self.made) - sum(port.backlog for port in self.ports) - sum(map(len, self.kept))
        assert sent == (
            sum(s["rx_packets"] + s["queued"] + sum(s["drops"].values()) for s in stats)
            + sum(gate.held + gate.swallowed for gate in self.gates)
        )
        assert [s["rx_packets"] for s in stats] == list(map(len, self.got))
        assert self.net.queued == sum(s["queued"] for s in stats)
        for side, got in enumerate(self.got):
            numbers = [int.from_bytes(frame[1:5], "big") for frame in got]
            assert numbers == sorted(set(numbers)), "twice, or out of order"
            size = max(45, self.ports[side].min_frame)
            assert all(frame == (bytes([1 - side]) + frame[1:5]).ljust(size, b"\0") for frame in got)
        assert [port.breaches for port in self.ports] == [[], []]

    def settle(self):
        """With everything open, all that waits must move."""
        self.net.running = True
        for gate in self.gates:
            self.let_go(gate)
            gate.mode = "pass"
        for port in self.ports:
            port.set_link(True)
            port.reaction = "keep"
        for port in self.ports * 2:
            port.room(None)
        if self.ports[0].peer is None:
            self.ports[0].pair(self.ports[1])
        for port in self.ports:
            port.post([])                                                       # goes on with what waited while there was no peer
        for side in range(2):
            self.kept[side] = self.kept[side][self.ports[side].send(self.kept[side]):]
        self.check()
        assert [port.queued for port in self.ports] == [0, 0]
        assert [port.backlog for port in self.ports] == [0, 0]
        assert self.kept == [[], []]

    def close(self):
        for gate in self.gates:
            gate.remove()
        for port in self.ports:
            port.close()
        assert self.net.queued == 0
        self.net.close()


@settings(max_examples=300)
@given(options=st.tuples(ends, ends), filters=st.lists(st.tuples(sides, st.sampled_from(["all", "rx", "tx"])), max_size=4),
       history=st.lists(operations, max_size=30))
def test_every_packet_arrives_once_in_order_or_is_counted(options, filters, history):
    """6.3, lost wake-ups: any history of sends, room, link, VM, filters and queue bounds."""
    run = History(options, filters)
    for operation in history:
        run.apply(operation)
    run.settle()
    run.close()


# ------------------------------------------------------------------------------------------------------------------ a hub

member = st.fixed_dictionaries({
    "capacity": st.one_of(st.none(), st.integers(0, 40)), "asks": st.booleans(), "flow_control": st.booleans(),
    "reaction": st.sampled_from(["keep", "flush"]),
})  # fmt: skip
hub_operations = st.one_of(
    st.tuples(st.just("post"), st.integers(0, 3), counts),
    st.tuples(st.just("room"), st.integers(0, 3), st.one_of(st.none(), st.integers(0, 60))),
    st.tuples(st.just("flush"), st.integers(0, 3)),
    st.tuples(st.just("run"), st.booleans()),
)


@settings(max_examples=150)
@given(options=st.lists(member, min_size=2, max_size=4), history=st.lists(hub_operations, max_size=25))
def test_every_member_of_a_hub_gets_all_from_all_others_in_order(options, history):
    """H2 to H6: without links down or queues full nothing is lost, whoever was slow meanwhile."""
    net = Loop(clock=VirtualClock())
    hub = Hub(net, 0)
    ports = [HubPort(net, hub, f"hub0port{i}") for i in range(len(options))]
    members = [Port(net, str(i), **option) for i, option in enumerate(options)]
    for a, b in zip(members, ports, strict=True):
        a.pair(b)
    made = [0] * len(members)
    for name, *args in history:
        if name == "run":
            net.running = args[0]
            continue
        i = args[0] % len(members)
        if name == "post":
            members[i].post([bytes([i]) + (made[i] + k).to_bytes(4, "big") for k in range(args[1])])
            made[i] += args[1]
        elif name == "room":
            members[i].room(args[1])
        else:
            members[i].flush()
    net.running = True
    for client in (members + ports) * 2:
        client.room(None) if isinstance(client, Port) else client.flush()
    for i, m in enumerate(members):
        got = m.recv()
        for k in range(len(members)):
            assert [int.from_bytes(f[1:], "big") for f in got if f[0] == k] == (list(range(made[k])) if k != i else [])
        assert (m.backlog, m.breaches) == (0, [])
    for client in members + ports:
        client.close()
    assert net.queued == 0
    net.close()


# ---------------------------------------------------------------------------------------------------------------- threads


def together(*work):
    """Run the functions at once, each in a thread; what one raises is raised here."""
    errors = []

    def guarded(f):
        try:
            f()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(f,)) for f in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "deadlock"
    if errors:
        raise errors[0]


def test_two_threads_and_the_loop_on_one_network(net, make):
    hub = Hub(net, 0)
    sources = [make(Source, f"s{i}", size=64, flow_control=i == 0) for i in range(2)]
    sink, slow = make(Sink, "sink"), make(Port, "slow", capacity=100)
    for client in (*sources, sink, slow):
        client.pair(make(HubPort, hub))
    slow.queue_limits = (500, 1 << 20)
    net.start()

    def control():
        for i in range(300):
            slow.room(10)
            slow.recv()
            sink.set_link(True)
            gate = Gate(sink)
            gate.insert()
            net.call_later(0, lambda: slow.room(1))
            gate.remove()
            make(Port).close()
            sources[i % 2].stats()

    together(lambda: sources[0].drive(20_000, 7), lambda: sources[1].drive(20_000, 64), control)
    net.stop()
    slow.room(None)
    assert [s.pending for s in sources] == [0, 0]
    assert sink.packets == 40_000
    stats = slow.stats()
    assert stats["rx_packets"] + sum(stats["drops"].values()) == 40_000
    assert [s.stats()["rx_packets"] for s in sources] == [20_000, 20_000]


def test_several_networks_at_once_never_meet():
    def one():
        net = Loop()
        source, sink, back = Source(net, size=100), Sink(net, checksum=True, numbered=True), LoopBack(net)
        source.pair(sink)
        net.start()
        for _ in range(50):
            source.drive(100)
        source.unpair()
        source.pair(back)
        source.drive(1000)
        assert (sink.packets, sink.misordered) == (5000, 0)
        assert (net.allocations, net.queued) == (0, 0)
        assert source.stats()["rx_packets"] == 1000
        for client in (source, sink, back):
            client.close()
        net.close()

    together(*[one] * 4)


def test_closing_and_pairing_while_another_thread_sends(net, make):
    source = make(Source)
    done = threading.Event()

    def churn():
        for i in range(200):
            peer = Port(net, capacity=None if i % 2 else 3)
            source.pair(peer)
            if i % 3:
                source.unpair()
            peer.close()
        done.set()

    def send():
        while not done.is_set():
            source.drive(100)

    together(churn, send)
    assert net.queued == 0
    assert set(source.stats()["drops"]) <= {"no-peer"}


# ------------------------------------------------------------------------------------------------------------- what is left


def test_clients_that_nobody_holds_are_gone_with_what_they_held(net):
    before = live()
    a, b = Port(net, capacity=0), Port(net)
    b.pair(a)
    b.send([b"x" * 1000] * 50)
    assert (live(), net.queued) == (before + 2, 50)
    a.unpair()
    gate = Gate(b, "hold")
    gate.insert()
    del a, b, gate
    gc.collect()
    assert (live(), net.queued) == (before, 0)


def test_a_network_lives_as_long_as_its_clients():
    a, b = Port(Loop()), None
    b = Port(a.context)
    a.pair(b)
    gc.collect()
    a.send([b"x" * 60])
    assert b.recv() == [b"x" * 60]
    a.close()
    b.close()
    a.context.close()


def test_counters_tell_allocations_and_what_is_queued_now(link, net):
    a, b = link(b={"capacity": 0})
    a.send([b"x" * 60] * 7)
    assert (net.allocations, net.queued) == (7, 7)
    b.room(3)
    assert (net.allocations, net.queued) == (7, 4)
    b.close()
    assert (net.allocations, net.queued) == (7, 0)


def test_a_client_without_packets_is_small(net):
    """Under 16 KiB, ops and counters included."""
    import resource

    ports = [Port(net) for _ in range(100)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ports += [Port(net) for _ in range(4000)]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 4000
    for port in ports:
        port.close()
    assert grown < 16384


@pytest.mark.parametrize("reason", ["no-peer", "link-down", "empty", "oversize", "bad-offload", "queue-full", "purged", "no-buffer"])
def test_each_reason_of_the_core_comes_up_alone(make, reason):
    a, b = make(), make(capacity=0 if reason in ("queue-full", "purged") else None, max_frame=1000)
    if reason != "no-peer":
        a.pair(b)
    offload = None
    frames = [b"x" * 60] * 3
    if reason == "link-down":
        b.set_link(False)
    elif reason == "empty":
        frames = [b""] * 3
    elif reason == "oversize":
        frames = [bytes(1001)] * 3
    elif reason == "bad-offload":
        offload = {"gso_type": 1}
    elif reason == "queue-full":
        b.queue_limits = (0, 0)
    if reason == "no-buffer":
        b.room(None)
        b.close()
        b = make(capacity=0)
        b.loopback(frames)
    else:
        a.send(frames, offload)
    if reason == "purged":
        a.purge()
    drops = Counter(a.stats()["drops"]) + Counter(b.stats()["drops"])
    assert drops == {reason: 3}
