"""Hubs: H1 to H7, with flow control, offloads, and hubs joined in a circle."""

import itertools

import pytest

from qnet._loop import Loop
from qnet.backends._hub import Hub, HubPort
from qnet.testing import Port, Sink, Source


def frame(i, size=60):
    return i.to_bytes(4, "big") * (size // 4)


@pytest.fixture
def hub(net, make):
    """hub(options of a member, ...) -> a Hub's members, each behind its port."""
    made = []

    def hub(*options, hub=None):
        the_hub = hub or Hub(net, 0)
        made.append(the_hub)
        members = []
        for i, option in enumerate(options):
            port = make(HubPort, the_hub, f"hub0port{i}")
            members.append(make(Port, f"m{i}", **option))
            members[-1].pair(port)
        return members

    yield hub
    made.clear()


def test_h2_what_enters_one_port_leaves_by_all_others(hub):
    members = hub({}, {}, {}, {})
    frames = [frame(i) for i in range(70)]
    members[1].send(frames)
    assert [m.recv() for m in members] == [frames, [], frames, frames]


def test_h1_the_newest_port_comes_first_and_closed_ports_are_gone(net, make):
    the_hub = Hub(net, 7)
    ports = [make(HubPort, the_hub, f"hub7port{i}") for i in range(3)]
    assert the_hub.ports == ports[::-1]
    assert the_hub.hub_id == 7
    ports[1].close()
    assert the_hub.ports == [ports[2], ports[0]]
    del ports


def test_a_closed_port_gets_nothing_and_the_others_go_on(hub, make):
    members = hub({}, {}, {})
    members[1].peer.close()
    members[0].send([frame(0)])
    assert [m.recv() for m in members] == [[], [], [frame(0)]]


def test_h3_a_port_without_peer_counts_as_able(net, make):
    the_hub = Hub(net, 0)
    a, port, _empty = make(Port), make(HubPort, the_hub), make(HubPort, the_hub)
    a.pair(port)
    assert port.can_receive
    a.send([frame(0)])
    assert port.stats()["rx_packets"] == 1


def test_h3_a_port_alone_in_its_hub_takes_nothing(net, make):
    the_hub = Hub(net, 0)
    a, port = make(Port, flow_control=True), make(HubPort, the_hub)
    a.pair(port)
    assert not port.can_receive
    assert a.send([frame(0)]) == 0


def test_h3_h4_when_nobody_has_room_the_sender_waits_until_somebody_has(hub):
    a, b, c = hub({"flow_control": True}, {"capacity": 1}, {"capacity": 1})
    assert a.send([frame(0)]) == 1
    assert a.send([frame(1)]) == 0
    assert a.resumed == 0
    b.room(1)
    assert a.resumed == 1
    assert a.send([frame(1)]) == 1
    assert b.recv() == [frame(0), frame(1)]
    c.room(1)
    assert c.recv() == [frame(0), frame(1)]                                     # it queued behind c's port (H6)


def test_h3_h4_a_sender_without_flow_control_queues_at_the_hub(hub):
    a, b = hub({}, {"capacity": 0})
    a.send([frame(i) for i in range(100)])
    assert (b.queued, a.peer.queued) == (0, 100)
    b.room(10)
    b.room(None)
    assert b.recv() == [frame(i) for i in range(100)]
    assert a.peer.queued == 0


def test_h4_a_hub_that_stood_still_moves_when_any_member_has_room(hub):
    """6.3, hub stall: one member stopped must not stop the others, and its flush must reach the ports."""
    a, b, stopped = hub({"flow_control": True}, {"capacity": 0}, {"capacity": 0})
    a.post([frame(i) for i in range(50)])
    assert a.backlog == 50
    b.room(None)
    assert a.backlog == 0
    assert b.recv() == [frame(i) for i in range(50)]
    stopped.room(None)
    assert stopped.recv() == [frame(i) for i in range(50)]


def test_h6_a_slow_member_does_not_slow_the_others_and_loses_its_own(hub):
    a, fast, slow = hub({}, {}, {"capacity": 0})
    slow.queue_limits = (100, 1 << 20)
    frames = [frame(i) for i in range(300)]
    a.send(frames)
    assert fast.recv() == frames
    assert slow.queued == 100
    assert slow.stats()["drops"] == {"queue-full": 200}
    slow.room(None)
    assert slow.recv() == frames[:100]


def test_h7_link_state_does_not_pass_a_hub(hub):
    a, b = hub({}, {})
    a.set_link(False)
    assert (b.link_down, b.link_changes) == (False, 0)
    b.send([frame(0)])
    assert a.recv() == []
    a.peer.set_link(False)
    assert b.link_changes == 0


def test_a_member_without_link_holds_up_nobody(hub):
    a, b, c = hub({"flow_control": True}, {"capacity": 0}, {})
    b.set_link(False)
    assert a.send([frame(i) for i in range(10)]) == 10
    assert len(c.recv()) == 10
    c.close()
    assert a.send([frame(0)]) == 1


def test_each_member_gets_what_it_takes(hub):
    """One hub, one frame with a checksum to fill in: who takes it so gets it so, who does not gets it filled in, padded or not."""
    a, raw, plain, nic = hub({}, {"takes": "csum"}, {}, {"min_frame": 60})
    data = bytes(14) + bytes(range(20))
    a.send([data], {"flags": 1, "csum_start": 14, "csum_offset": 18})
    assert raw.recv() == [data]
    assert raw.offloads[0]["flags"] == 1
    (filled,) = plain.recv()
    assert filled != data
    assert nic.recv() == [filled.ljust(60, b"\0")]


def test_an_echo_behind_a_hub_reaches_all_others(hub):
    a, echo, c = hub({}, {"reaction": "echo"}, {})
    a.send([frame(i) for i in range(20)])
    assert a.recv() == [frame(i) for i in range(20)]
    assert c.recv() == [frame(i) for i in range(20)] * 2
    assert len(echo.recv()) == 20


def test_two_hubs_joined_once_are_one(hub, net, make):
    first, second = Hub(net, 0), Hub(net, 1)
    a, b = hub({}, {}, hub=first)
    c, d = hub({}, {}, hub=second)
    make(HubPort, first).pair(make(HubPort, second))
    a.send([frame(i) for i in range(100)])
    assert [m.recv() for m in (b, c, d)] == [[frame(i) for i in range(100)]] * 3
    assert a.recv() == []


def test_two_hubs_joined_twice_do_not_hold_the_lock_for_ever(hub, net, make):
    first, second = Hub(net, 0), Hub(net, 1)
    (a,) = hub({}, hub=first)
    (b,) = hub({"capacity": 0}, hub=second)
    b.queue_limits = (100, 1 << 20)
    for _ in range(2):
        make(HubPort, first).pair(make(HubPort, second))
    a.send([frame(0)])
    assert net.queued == 100
    a.send([frame(1)])
    b.room(None)
    assert set(b.recv()) <= {frame(0), frame(1)}


@pytest.mark.parametrize("hubs", [1, 2, 3])
def test_one_frame_in_a_ring_of_hubs_is_bounded_work(hub, net, make, hubs):
    """Some 10000 rounds, milliseconds; then it is dropped and counted, and later frames fare no worse."""
    ring = [Hub(net, i) for i in range(hubs)]
    (a,) = hub({}, hub=ring[0])
    sink = make(Sink)
    sink.pair(make(HubPort, ring[0]))
    ports = [make(HubPort, ring[i // 2 % hubs]) for i in range(2 * hubs)]
    for i in range(1, 2 * hubs, 2):
        ports[i].pair(ports[(i + 1) % (2 * hubs)])
    for _ in range(2):
        before = sink.packets
        a.send([frame(0)])
        assert 10000 < sink.packets - before < 20300                # both ways round
    assert sum(port.stats()["drops"].get("queue-full", 0) for port in ports) == 4
    assert net.queued == 0


@pytest.mark.parametrize("hubs", [1, 2])
def test_a_ring_of_hubs_can_be_asked_for_room(hub, net, make, hubs):
    ring = [Hub(net, i) for i in range(hubs)]
    (a,) = hub({"capacity": 0}, hub=ring[0])
    ports = [make(HubPort, ring[i // 2 % hubs]) for i in range(2 * hubs)]
    for i in range(1, 2 * hubs, 2):
        ports[i].pair(ports[(i + 1) % (2 * hubs)])
    for port in ports:
        port.flush()
        assert port.can_receive
    a.send([frame(0)])
    assert a.queued <= 10000
    assert a.stats()["drops"] == {}


def test_a_hub_port_joins_a_hub_of_its_own_network_only(net, make):
    other = Loop()
    try:
        with pytest.raises(ValueError, match="one network"):
            HubPort(net, Hub(other, 0), "x")
    finally:
        other.close()


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_members_and_ports_may_be_closed_in_any_order(hub, net, order):
    """6.3, hub double cleanup: twice each, with packets under way."""
    a, b = hub({"capacity": 0}, {"capacity": 0})
    parts = [a, a.peer, b, b.peer]
    for i in order:
        a.send([frame(0)] * 3)
        b.send([frame(1)] * 3)
        parts[i].close()
        parts[i].close()
        a.room(1)
        b.room(1)
    assert net.queued == 0
    parts.clear()


def test_h6_the_default_bound_holds_behind_a_hub(hub, make):
    a, b = hub({}, {"capacity": 0})
    third = make(Port)
    third.pair(make(HubPort, a.peer.hub))
    source = make(Source)
    a.unpair()
    source.pair(a_port := make(HubPort, third.peer.hub))
    source.drive(10_500)
    assert b.queued == 10_000
    assert third.stats()["rx_packets"] == 10_500
    assert a_port.queued == 0
