"""Flush and purge: S30 to S37."""

import pytest

from qnet.testing import Gate


def frame(i, size=60):
    return i.to_bytes(4, "big") * (size // 4)


def test_s30_a_flush_without_room_keeps_the_packets_and_their_order(link):
    a, b = link(b={"capacity": 0})
    frames = [frame(i) for i in range(150)]
    a.send(frames)
    b.flush()
    b.flush()
    assert b.queued == 150
    b.room(70)
    b.room(None)
    assert b.recv() == frames


def test_s31_a_flush_tells_the_peer_that_there_is_room_even_if_it_did_not_wait(link):
    a, b = link()
    b.flush()
    assert (a.resumed, b.resumed) == (1, 0)


def test_s31_not_while_something_still_waits(link):
    a, b = link(b={"capacity": 0})
    a.send([frame(0)] * 3)
    b.room(1)
    assert a.resumed == 0


@pytest.mark.parametrize("asks", [True, False])
def test_one_flush_is_enough_however_little_room_a_call_finds(link, asks):
    """A receiver that takes one frame a call and makes room at once must not be left with a queue and nobody to flush it."""
    a, b = link(b={"capacity": 1, "asks": asks, "reaction": "flush"})
    frames = [frame(i) for i in range(300)]
    a.send(frames)
    assert b.queued == 0
    assert b.recv() == frames


def test_s33_s34_a_purge_takes_what_the_client_sent_and_nothing_else(link):
    a, b = link(a={"capacity": 0}, b={"capacity": 0})
    a.send([frame(1)] * 3)
    b.send([frame(2)] * 2)
    assert a.purge() == 3
    assert (b.queued, a.queued) == (0, 2)
    assert b.stats()["drops"] == {"purged": 3}
    assert a.purge() == 0
    a.room(None)
    assert a.recv() == [frame(2)] * 2


def test_s34_without_a_peer_there_is_nothing_to_purge(make):
    assert make().purge() == 0


def test_s35_a_closing_client_drops_its_queue_and_its_peer_can_go_on(link):
    a, b = link(a={"flow_control": True}, b={"capacity": 1})
    assert a.send([frame(0), frame(1)]) == 1
    b.close()
    assert a.resumed == 1
    assert a.send([frame(1)]) == 1
    assert a.stats()["drops"] == {"no-peer": 1}


def test_unpair_drops_what_is_under_way_in_both_directions(link):
    a, b = link(a={"capacity": 0}, b={"capacity": 0})
    a.send([frame(1)] * 3)
    b.send([frame(2)] * 2)
    a.unpair()
    assert (a.queued, b.queued) == (0, 0)
    assert (a.stats()["drops"], b.stats()["drops"]) == ({"purged": 2}, {"purged": 3})


@pytest.mark.parametrize("who", ["sender", "receiver"])
def test_unpair_lets_a_waiting_sender_go_on_whoever_calls_it(link, who):
    """A backend that stopped reading its socket would otherwise stay mute for ever, also behind the next peer."""
    a, b = link(a={"flow_control": True}, b={"capacity": 0})
    a.post([frame(0)])
    (a if who == "sender" else b).unpair()
    assert (a.resumed, a.backlog) == (1, 0)
    assert a.stats()["drops"] == {"no-peer": 1}


@pytest.mark.parametrize("who", ["sender", "receiver"])
def test_s22_a_receiver_that_owes_a_flush_is_not_called_for_its_next_peer_either(link, make, who):
    a, b = link(b={"capacity": 1, "asks": False})
    a.send([frame(0), frame(1)])
    assert b.recv() == [frame(0)]
    (a if who == "sender" else b).unpair()
    c = make(flow_control=True)
    c.pair(b)
    assert not b.can_receive
    c.post([frame(2)])
    assert (b.recv(), c.blocked) == ([], True)
    b.room(1)
    assert b.recv() == [frame(2)]


@pytest.mark.parametrize("close", [True, False])
def test_s22_a_flush_that_is_owed_may_come_while_there_is_no_peer(link, make, close):
    a, b = link(b={"capacity": 1, "asks": False})
    a.send([frame(0), frame(1)])
    a.close() if close else a.unpair()
    b.room(1)
    c = make()
    c.pair(b)
    c.send([frame(2)])
    assert b.recv() == [frame(0), frame(2)]


def test_s36_loopback_reaches_the_client_itself_and_nobody_else(link):
    a, b = link(a={"min_frame": 60})
    gate = Gate(a, "drop")
    gate.insert()
    assert a.loopback([b"short", frame(1)]) == 2
    assert a.recv() == [b"short".ljust(60, b"\0"), frame(1)]                    # CVE-2025-12464: padded as any other
    assert b.recv() == []
    assert gate.seen == (0, 0)
    gate.remove()


def test_s36_loopback_never_queues(link):
    a, b = link(a={"capacity": 1})
    assert a.loopback([frame(0), frame(1), frame(2)]) == 3
    assert a.queued == 0
    assert a.recv() == [frame(0)]
    assert a.stats()["drops"] == {"no-buffer": 2}
    b.send([frame(3)])
    assert a.loopback([frame(4)]) == 1                                          # something waits: refused
    assert a.stats()["drops"] == {"no-buffer": 3}


def test_s36_what_the_peer_sends_during_a_loopback_is_not_forgotten(link):
    """a loops a frame back, sends its backlog from within that receive, and b echoes it: it waits for a's receive to end."""
    a, _ = link(a={"reaction": "send"}, b={"reaction": "echo"})
    a.post([frame(1)])
    a.loopback([frame(0)])
    assert a.recv() == [frame(0), frame(1)]
    assert a.queued == 0


def test_s37_after_a_stop_purge_leaves_nothing_stale(link, net):
    a, b = link()
    net.running = False
    a.send([frame(0)] * 3)
    a.purge()
    net.running = True
    b.flush()
    assert b.recv() == []
