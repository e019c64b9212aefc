"""Sending to a peer that has room: S10 to S12, S19, S21, S25, B26, reasons for drops."""

import pytest

from qnet.testing import Sink, Source


def frame(i, size=60):
    return i.to_bytes(4, "big") * (size // 4) + bytes(size % 4)


def test_frames_arrive_in_order_and_are_counted_each_way(link):
    a, b = link()
    frames = [frame(i, 60 + i) for i in range(200)]
    assert a.send(frames) == 200
    assert b.recv() == frames
    size = sum(map(len, frames))
    stats = a.stats()
    assert (stats["tx_packets"], stats["tx_bytes"], stats["rx_packets"], stats["drops"]) == (200, size, 0, {})
    stats = b.stats()
    assert (stats["rx_packets"], stats["rx_bytes"], stats["tx_packets"], stats["drops"]) == (200, size, 0, {})


def test_both_directions_are_independent(link):
    a, b = link()
    a.send([frame(1)])
    b.send([frame(2), frame(3)])
    assert b.recv() == [frame(1)]
    assert a.recv() == [frame(2), frame(3)]


def test_a_burst_is_one_call_of_the_receiver(link):
    a, b = link()
    a.send([frame(i) for i in range(64)])
    assert b.bursts == 1


@pytest.mark.parametrize("flow_control", [False, True])
def test_s10_without_a_peer_frames_are_dropped_and_the_sender_is_told_that_they_went(make, flow_control):
    a = make(flow_control=flow_control)
    assert a.send([frame(0)] * 3) == 3
    assert a.stats()["drops"] == {"no-peer": 3}
    assert a.stats()["tx_packets"] == 0


def test_s11_s25_larger_than_any_packet_may_be_is_dropped_unread(link):
    a, b = link()
    for size in (69633, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):                    # CVE-2018-17963: more than INT_MAX
        assert a.send_claim(size) == 1
    assert a.send_claim(64, iovcnt=65) == 1
    assert b.recv() == []
    assert b.stats()["drops"] == {"oversize": 5}


def test_s11_larger_than_any_packet_may_be_does_not_enter_a_queue(link):
    a, b = link(b={"capacity": 0})
    for size in (69633, 0x80000000, 0xFFFFFFFF):
        assert a.send_claim(size) == 1
    assert a.send_claim(64, iovcnt=65) == 1
    assert b.stats()["drops"] == {"oversize": 4}
    assert b.queued == 0


def test_s7_the_largest_packet_arrives(link):
    a, b = link()
    a.send([bytes(range(256)) * 272])
    (got,) = b.recv()
    assert got == bytes(range(256)) * 272
    assert len(got) == 69632


@pytest.mark.parametrize("capacity", [None, 0])
def test_b26_a_frame_without_bytes_is_dropped_at_the_entry_and_mutes_nobody(link, capacity):
    a, b = link(b={"capacity": capacity})
    assert a.send([b"", [b"", b""], []]) == 3
    assert b.stats()["drops"] == {"empty": 3}
    b.room(None)
    assert a.send([frame(1), b"", frame(2)]) == 3
    assert b.recv() == [frame(1), frame(2)]


def test_b26_a_sender_with_flow_control_gets_rid_of_a_frame_without_bytes(link):
    a, b = link(a={"flow_control": True})
    assert a.send([b"", frame(1), b""]) == 3
    assert not a.blocked
    assert b.recv() == [frame(1)]


def test_a_frame_larger_than_the_receiver_takes_is_dropped(link):
    a, b = link(b={"max_frame": 1518})
    a.send([frame(0, 1518), frame(1, 1519), frame(2, 60)])
    assert [len(f) for f in b.recv()] == [1518, 60]
    assert b.stats()["drops"] == {"oversize": 1}


@pytest.mark.parametrize("down", ["a", "b"])
def test_s10_s19_with_the_link_down_on_either_side_frames_are_dropped(link, down):
    a, b = link()
    (a if down == "a" else b).set_link(False)
    assert a.send([frame(0)] * 2) == 2
    assert b.recv() == []
    assert (a if down == "a" else b).stats()["drops"] == {"link-down": 2}
    (a if down == "a" else b).set_link(True)
    a.send([frame(7)])
    assert b.recv() == [frame(7)]


def test_s21_pieces_arrive_as_one_frame(link):
    a, b = link()
    whole = bytes(range(256)) * 4
    a.send([
        [whole[:1], whole[1:14], b"", whole[14:]],
        [whole[i * 16:(i + 1) * 16] for i in range(64)],
        [b"", b"", whole],
    ])
    assert b.recv() == [whole] * 3


def test_s28_short_frames_are_padded_at_delivery_to_who_wants_it_and_to_nobody_else(link):
    a, b = link(b={"min_frame": 60})
    frames = [bytes([i]) * i for i in range(1, 64)]
    a.send(frames)
    assert b.recv() == [f.ljust(60, b"\0") for f in frames]
    b.send(frames)
    assert a.recv() == frames


def test_to_oneself_or_into_another_network_no_link_is_made(make):
    from qnet._loop import Loop

    a, other = make(), Loop()
    foreign = type(a)(other, "far")
    try:
        for peer in (a, foreign):
            with pytest.raises(ValueError, match="two clients of one network"):
                a.pair(peer)
    finally:
        foreign.close()
        other.close()


def test_s3_only_free_clients_are_linked(make, link):
    a, b = link()
    c = make(name="c")
    for first, second in ((a, c), (c, a), (c, b), (b, a)):
        with pytest.raises(ValueError, match="has a peer already"):
            first.pair(second)
    assert (a.peer, b.peer, c.peer) == (b, a, None)
    a.unpair()
    b.pair(c)
    assert (a.peer, b.peer, c.peer) == (None, c, b)


def test_a_closed_client_stays_an_object_without_a_peer(link):
    a, b = link()
    a.close()
    a.close()
    assert a.closed
    assert (a.peer, b.peer) == (None, None)
    assert a.send([frame(0)]) == 1
    assert b.send([frame(0)]) == 1
    assert a.stats()["drops"] == b.stats()["drops"] == {"no-peer": 1}
    with pytest.raises(ValueError, match="closed"):
        b.pair(a)


def test_source_and_sink_see_every_byte_once(make, net):
    for pieces in (1, 2, 4):
        source, sink = make(Source, size=333, pieces=pieces), make(Sink, checksum=True, numbered=True)
        source.pair(sink)
        assert source.drive(1000, burst=7) == 1000
        plain = (b"\xff" * 6 + bytes.fromhex("52540000000188b5") + bytes(range(256)) * 2)[:333]
        expected = 1000 * (sum(plain) - sum(plain[14:22])) + sum(sum(i.to_bytes(8, "little")) for i in range(1000))
        assert (sink.packets, sink.bytes, sink.sum, sink.misordered) == (1000, 333000, expected, 0)
    assert net.allocations == 0
