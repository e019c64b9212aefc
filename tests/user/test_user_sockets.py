"""What the guest opens to the world: TCP, UDP and DNS, the loopback behind 10.0.2.2, flow control, restrict=on, idleness."""

import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Raw

STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
FAMILIES = [(socket.AF_INET, "10.0.2.2"), (socket.AF_INET6, "fec0::2")]
MODES = ["pump", "thread", "manual"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("family", "gateway"), FAMILIES, ids=["ipv4", "ipv6"])
def test_tcp_echo(guest: Callable[..., Any], servers: Callable[..., Any], mode: str, family: int, gateway: str) -> None:
    g, server = guest(mode), servers(family, STREAM)
    tcp = g.connect(gateway, server.port)
    data = os.urandom(30000)
    tcp.send(data[:100])
    assert tcp.recv(100) == data[:100]
    tcp.send(data[100:])
    assert tcp.recv(len(data) - 100) == data[100:]
    tcp.close()
    assert g.client.stats()["drops"] == {}


@pytest.mark.parametrize("mode", ["pump", "thread"])
def test_tcp_brings_300_kilobytes_whole(guest: Callable[..., Any], mode: str) -> None:
    data = os.urandom(300_000)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        tcp = guest(mode).connect("10.0.2.2", listener.getsockname()[1])
        assert tcp.recv_all() == data
        thread.join()


def test_tcp_half_closed_by_the_guest_still_receives(guest: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tcp = guest().connect("10.0.2.2", listener.getsockname()[1])
        connection, _ = listener.accept()
        with connection:
            tcp.shutdown()
            tcp.guest.until(lambda: connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b"" if ready(connection) else False)
            connection.sendall(b"late")
        assert tcp.recv_all() == b"late"


def ready(s: socket.socket) -> bool:
    import select

    return bool(select.select([s], [], [], 0)[0])


def test_tcp_refused_is_a_reset(guest: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        guest().connect("10.0.2.2", port)


def test_many_connections_at_once_and_again(guest: Callable[..., Any], servers: Callable[..., Any]) -> None:
    """Descriptor numbers come back for other sockets; no wake-up may go astray."""
    g = guest()
    for _ in range(3):
        with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
            listener.settimeout(20)
            pairs = []
            for i in range(40):
                tcp = g.connect("10.0.2.2", listener.getsockname()[1], sport=30000 + i)
                pairs.append((tcp, listener.accept()[0]))
            for i, (_, connection) in enumerate(pairs):
                connection.sendall(b"%d\n" % i)
            for i, (tcp, _) in enumerate(pairs):
                assert tcp.recv(len(b"%d\n" % i)) == b"%d\n" % i
            for tcp, connection in pairs:
                connection.close()
                tcp.recv_all()
                tcp.shutdown()
                tcp.take()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("family", "gateway"), FAMILIES, ids=["ipv4", "ipv6"])
def test_udp_echo(guest: Callable[..., Any], servers: Callable[..., Any], mode: str, family: int, gateway: str) -> None:
    g, server = guest(mode), servers(family, DGRAM)
    for size in (0, 1, 18, 1400):
        payload = os.urandom(size)
        g.udp(gateway, server.port, payload)
        assert g.udp_reply(server.port) == payload


def test_udp_fragments_are_reassembled_both_ways(guest: Callable[..., Any], servers: Callable[..., Any]) -> None:
    from scapy.layers.inet import fragment

    g, server = guest(), servers(socket.AF_INET, DGRAM)
    payload = os.urandom(4000)
    packet = g.to("10.0.2.2") / UDP(sport=4000, dport=server.port) / Raw(payload)
    g.send(*fragment(packet, fragsize=1480))
    parts: dict[int, bytes] = {}
    while sum(map(len, parts.values())) < 4008:
        p = g.wait(lambda p: IP in p and p[IP].proto == 17)
        parts[p[IP].frag] = bytes(p[IP].payload)[: p[IP].len - 20]
    assert b"".join(parts[at] for at in sorted(parts))[8:] == payload


def test_a_frame_in_pieces_is_put_together(guest: Callable[..., Any], servers: Callable[..., Any]) -> None:
    g, server = guest(), servers(socket.AF_INET, DGRAM)
    frame = bytes(g.to("10.0.2.2") / UDP(sport=4000, dport=server.port) / Raw(b"in pieces"))
    g.port.send([[frame[:1], frame[1:14], frame[14:33], frame[33:]]])
    assert g.udp_reply(server.port) == b"in pieces"


def test_too_long_and_too_short_frames_are_counted(guest: Callable[..., Any]) -> None:
    g = guest()
    g.port.send([bytes(1515), b"\xff" * 13, bytes(1514)])
    assert g.client.stats()["drops"] == {"oversize": 1, "malformed": 1}


def test_an_answer_after_ten_idle_minutes_comes(guest: Callable[..., Any], servers: Callable[..., Any]) -> None:
    """libslirp's clock stands still while nothing happens; a socket opened then must not be taken for an old one."""
    g, server = guest("manual"), servers(socket.AF_INET, DGRAM)
    g.arp("10.0.2.2")
    g.net.run_until(g.net.now() + 600_000_000_000)
    g.udp("10.0.2.2", server.port, b"hello")
    assert g.udp_reply(server.port) == b"hello"


def test_networks_with_different_clocks_do_not_age_each_others_sockets(guest: Callable[..., Any], servers: Callable[..., Any]) -> None:
    server = servers(socket.AF_INET, DGRAM)
    early, late, real = guest("manual"), guest("manual"), guest("pump")
    late.net.run_until(10**15)
    for i in range(3):
        for g in (early, late, real):
            g.udp("10.0.2.2", server.port, b"%d" % i, sport=4000 + i)
        for g in (real, late, early):
            assert g.udp_reply(server.port, 4000 + i) == b"%d" % i


def test_networks_in_threads_side_by_side(guest: Callable[..., Any], servers: Callable[..., Any]) -> None:
    server = servers(socket.AF_INET, STREAM)
    streams = [guest("thread").connect("10.0.2.2", server.port)]
    streams[0].send(b"a" * 1000)
    assert streams[0].recv(1000) == b"a" * 1000
    streams[0].close()
    datagrams = servers(socket.AF_INET, DGRAM)
    guests = [guest("thread") for _ in range(3)]
    for i in range(20):
        for g in guests:
            g.udp("10.0.2.2", datagrams.port, b"%d" % i)
        for g in guests:
            assert g.udp_reply(datagrams.port) == b"%d" % i
    assert "UDP" not in streams[0].guest.client.connection_info()


def test_udp_sockets_expire_on_the_networks_clock(guest: Callable[..., Any], servers: Callable[..., Any]) -> None:
    g, server = guest("manual"), servers(socket.AF_INET, DGRAM)
    g.udp("10.0.2.2", server.port, b"x")
    g.udp_reply(server.port)
    assert "UDP[" in g.client.connection_info()
    g.net.run_until(g.net.now() + 300_000_000_000)
    assert "UDP[" not in g.client.connection_info()


# -------------------------------------------------------------------------------------------------------------- flow control


def test_tcp_waits_for_a_guest_that_does_not_take_frames(guest: Callable[..., Any]) -> None:
    """Nothing is lost and little is queued: the guest's window closes, and the host's sockets are left unread."""
    data = os.urandom(500_000)
    g = guest()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tcp = g.connect("10.0.2.2", listener.getsockname()[1])
        connection, _ = listener.accept()
        with connection:
            g.port.room(0)
            thread = threading.Thread(target=lambda: (connection.sendall(data), connection.shutdown(socket.SHUT_WR)))
            thread.start()
            for _ in range(50):
                g.step(0.002)
            assert 0 < g.port.queued < 200
            g.port.room(None)
            assert tcp.recv_all() == data
            thread.join()
    assert g.client.stats()["drops"] == g.port.stats()["drops"] == {}


def test_udp_for_a_guest_that_does_not_take_frames_stays_in_the_hosts_socket(guest: Callable[..., Any]) -> None:
    g = guest()
    with socket.socket(socket.AF_INET, DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        g.udp("10.0.2.2", server.getsockname()[1], b"hello")
        _, address = server.recvfrom(100)
        g.port.room(0)
        for i in range(2000):
            server.sendto(b"%d" % i, address)
            g.net.pump()
        assert 100 < g.port.queued < 300
        g.port.room(None)
        assert [int(g.udp_reply(server.getsockname()[1])) for _ in range(200)] == list(range(200))
    assert g.client.stats()["drops"] == g.port.stats()["drops"] == {}


def test_a_guest_that_answers_from_within_its_receive(guest: Callable[..., Any], servers: Callable[..., Any]) -> None:
    """libslirp is never entered from within itself: an echoing NIC's frames wait until it has returned."""
    g, server = guest(), servers(socket.AF_INET, DGRAM)
    g.udp("10.0.2.2", server.port, b"x")
    g.port.reaction = "echo"
    for _ in range(5):
        g.step()
    g.port.reaction = "keep"
    assert g.client.queued == 0
    g.ping("10.0.2.2")


# ----------------------------------------------------------------------------------------------------------------- idleness


def quiet(g: Any) -> None:
    wakeups = g.net.loop.wakeups
    time.sleep(2)
    assert g.net.loop.wakeups == wakeups


def test_an_idle_network_never_wakes_up(guest: Callable[..., Any]) -> None:
    g = guest("thread", hostfwd=["tcp::0-:22", "udp::0-:53", "tcp:[::1]:0-:80"])
    g.dhcp()
    g.ping("10.0.2.2")
    time.sleep(1.5)
    quiet(g)


def test_a_network_whose_connections_are_over_goes_back_to_sleep(guest: Callable[..., Any], servers: Callable[..., Any]) -> None:
    """Only UDP sockets are left, and it is known when they expire: virtual minutes pass with a handful of timeouts."""
    g, server = guest("manual"), servers(socket.AF_INET, DGRAM)
    g.udp("10.0.2.2", server.port, b"x")
    g.udp_reply(server.port)
    g.net.run_until(g.net.now() + 2_000_000_000)
    before = g.client.stats()["wakeups"]
    g.net.run_until(g.net.now() + 120_000_000_000)
    assert g.client.stats()["wakeups"] - before <= 2


def test_an_idle_tcp_connection_ticks_and_lives(guest: Callable[..., Any], servers: Callable[..., Any]) -> None:
    g, server = guest("manual"), servers(socket.AF_INET, STREAM)
    tcp = g.connect("10.0.2.2", server.port)
    before = g.client.stats()["wakeups"]
    g.net.run_until(g.net.now() + 60_000_000_000)
    assert 100 < g.client.stats()["wakeups"] - before < 140
    tcp.send(b"still there")
    assert tcp.recv(11) == b"still there"


# ----------------------------------------------------------------------------------------------------------------- restrict


def test_restrict_keeps_the_guest_in(guest: Callable[..., Any], servers: Callable[..., Any]) -> None:
    stream, datagram = servers(socket.AF_INET, STREAM), servers(socket.AF_INET, DGRAM)
    g = guest(restrict=True)
    assert g.client.info_str == "net=10.0.2.0,restrict=on"
    assert g.dhcp()["yiaddr"] == "10.0.2.15"
    head = g.to("10.0.2.2")
    g.send(head / TCP(sport=4000, dport=stream.port, flags="S"), head / UDP(sport=4000, dport=datagram.port) / Raw(b"x"))
    g.send(g.to("10.0.2.3") / UDP(sport=4001, dport=53) / Raw(bytes(20)))
    g.nothing(lambda p: (TCP in p and "A" in p[TCP].flags and "S" in p[TCP].flags) or (UDP in p and p[UDP].dport in (4000, 4001)))
    assert [line for line in g.client.connection_info().splitlines()[1:] if line] == []
