"""Several queues of one tap: flows over all of them, one peer or one for each, queues switched off and closed in any order (2.3)."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from qnet import HostError, Net
from qnet.backends.tap import Tap
from qnet.testing import Port

pytestmark = pytest.mark.root

FLOWS = 64
IP_TO_GUEST = Ether(dst="02:00:00:00:00:02") / IP(src="10.0.0.1", dst="10.0.0.2")
FRAMES = [bytes(IP_TO_GUEST / UDP(sport=n, dport=9) / bytes(20)) for n in range(1, FLOWS + 1)]


class Queues:
    """ports == queues of the tap | a socket that sends FRAMES, each another flow."""

    def __init__(self, net: Net, ns: Any, ports: int, **port: Any) -> None:
        self.net = net
        with ns:
            net.netdev_add("tap,id=t,ifname=mq0,queues=3,script=no,downscript=no")
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.taps = [client for client in net.clients if isinstance(client, Tap)]
        self.ports = [Port(net.loop, f"port{i}", **port) for i in range(ports)]
        for mine, tap in zip(self.ports, self.taps, strict=False):
            mine.pair(tap)
        ns.run("ip link set mq0 up")
        self.socket.bind(("mq0", 0))

    def send(self) -> None:
        for frame in FRAMES:
            self.socket.send(frame)

    @property
    def arrived(self) -> int:
        return sum(len(port.recv()) for port in self.ports)

    def close(self) -> None:
        self.socket.close()
        for client in (*self.ports, *self.taps):
            client.close()


@pytest.fixture
def queues(net: Net, ns: Any) -> Iterator[Any]:
    made: list[Queues] = []

    def make(*args: Any, **options: Any) -> Queues:
        made.append(Queues(net, ns, *args, **options))
        return made[-1]

    yield make
    made.pop().close()


def reads(q: Queues) -> list[object]:
    return [tap.stats()["syscalls"] for tap in q.taps]


def test_each_queue_is_a_client(queues: Any) -> None:
    q = queues(0)
    assert len(q.taps) == 3
    assert q.net.info_network() == "".join(f"t: index={i},type=tap,ifname=mq0,script=no,downscript=no\n" for i in range(3))
    q.net.netdev_del("t")
    assert q.net.clients == ()


def test_each_queue_has_a_peer(queues: Any, pump_until: Any) -> None:
    q = queues(3)
    q.send()
    pump_until(q.net, lambda: sum(port.stats()["rx_packets"] for port in q.ports) == FLOWS)
    counts = [port.stats()["rx_packets"] for port in q.ports]
    assert min(counts) > 0, "the kernel does not spread flows"
    for n, port in enumerate(q.ports):
        assert port.stats()["rx_packets"] == q.taps[n].stats()["tx_packets"]


def test_one_peer_gets_what_all_queues_read(queues: Any, pump_until: Any, rests: Any) -> None:
    """As a NIC with one queue."""
    q = queues(1)
    q.send()
    got: list[bytes] = []
    pump_until(q.net, lambda: got.extend(q.ports[0].recv()) or len(got) == FLOWS)
    assert sorted(got) == sorted(FRAMES)
    assert min(reads(q)) > 0
    assert [tap.stats()["drops"] for tap in q.taps] == [{}, {}, {}]
    rests(q.net)


def test_all_queues_wait_for_the_one_peer(queues: Any, pump_until: Any, rests: Any) -> None:
    q = queues(1, capacity=5)
    q.send()
    pump_until(q.net, lambda: q.ports[0].stats()["rx_packets"] == 5)
    rests(q.net)
    for total in (*range(12, FLOWS, 7), FLOWS):
        q.ports[0].room(7)
        pump_until(q.net, lambda: q.ports[0].stats()["rx_packets"] == total)  # noqa: B023
        rests(q.net)
    assert sorted(q.ports[0].recv()) == sorted(FRAMES)
    assert q.net.loop.allocations == 0


def test_a_queue_that_is_off_takes_no_part(queues: Any, pump_until: Any, rests: Any) -> None:
    q = queues(3)
    q.taps[1].enabled = False
    q.taps[1].enabled = False
    before = reads(q)
    q.send()
    pump_until(q.net, lambda: q.ports[0].stats()["rx_packets"] + q.ports[2].stats()["rx_packets"] == FLOWS)
    assert q.arrived == FLOWS
    assert reads(q)[1] == before[1]
    q.ports[1].send(FRAMES[:3])
    assert q.taps[1].stats()["drops"] == {"disabled": 3}
    rests(q.net)
    q.taps[1].enabled = True
    q.send()
    pump_until(q.net, lambda: sum(port.stats()["rx_packets"] for port in q.ports) == 2 * FLOWS)
    assert q.ports[1].stats()["rx_packets"] > 0
    q.ports[1].send(FRAMES[:3])
    assert q.taps[1].stats()["rx_packets"] == 6, "three of them dropped"


def test_what_a_queue_had_read_goes_when_it_is_switched_off(queues: Any, pump_until: Any, rests: Any) -> None:
    q = queues(3, capacity=1)
    q.send()
    pump_until(q.net, lambda: all(port.capacity_left == 0 for port in q.ports))
    rests(q.net)
    q.taps[2].enabled = False
    assert q.taps[2].stats()["drops"]["purged"] > 0
    rests(q.net)


def test_a_tap_with_one_queue_cannot_be_switched_off(net: Net, ns: Any) -> None:
    with ns:
        client: Any = net.netdev_add("tap,id=t,script=no,downscript=no")
    with pytest.raises(HostError, match="could not disable queue of tap0: Invalid argument"):
        client.enabled = False
    assert client.enabled


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_they_are_closed_in_any_order(queues: Any, pump_until: Any, rests: Any, order: tuple[int, ...]) -> None:
    """With frames read and not yet taken, and frames still in the kernel."""
    q = queues(1, capacity=3)
    q.send()
    pump_until(q.net, lambda: q.ports[0].capacity_left == 0)
    for n in order:
        q.taps[n].close()
        q.ports[0].room(1)
        rests(q.net)


def test_the_interface_is_deleted(queues: Any, ns: Any, rests: Any) -> None:
    q = queues(1)
    q.send()
    ns.run("ip link del mq0")
    rests(q.net)
    assert [tap.error for tap in q.taps] == ["File descriptor in bad state"] * 3


def test_more_than_the_kernel_has(net: Net, ns: Any) -> None:
    with ns, pytest.raises(HostError) as raised:
        net.netdev_add("tap,id=t,queues=300,script=no,downscript=no")
    assert raised.value.text == "could not configure /dev/net/tun (tap0): Argument list too long"
    assert net.clients == ()
    assert "tap0" not in ns.run("ip -o link")
