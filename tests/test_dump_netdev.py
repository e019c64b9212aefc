"""The legacy dump netdev: on a hub it writes what every member sends."""

import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scapy.utils import RawPcapNgReader, RawPcapReader

from qnet import HostError, Net, OptionError, VirtualClock
from qnet.backends import dump
from qnet.backends._dump import DumpClient
from qnet.testing import Port

START = 1_700_000_000_123_456_789


def frame(n: int, size: int = 60) -> bytes:
    return (bytes(12) + b"\x88\xb5" + struct.pack("!I", n)).ljust(size, b"\xa5")


class World:
    """Hub 0 with two members, and a dump on it."""

    def __init__(self, spec: str) -> None:
        self.net = Net(clock=VirtualClock(START))
        self.net.net_add(f"dump,id=d0,{spec}")
        self.members = [Port(self.net.loop, f"n{i}", takes="all") for i in range(2)]
        for i, member in enumerate(self.members):
            member.pair(self.net.netdev_add(f"hubport,id=p{i},hubid=0"))

    @property
    def client(self) -> DumpClient:
        client = self.net.client("d0")
        assert isinstance(client, DumpClient)
        return client

    def close(self) -> None:
        for member in self.members:
            member.close()
        self.net.close()
        vars(self).clear()


@pytest.fixture
def make() -> Iterator[Callable[[str], World]]:
    worlds: list[World] = []

    def make(spec: str) -> World:
        worlds.append(World(spec))
        return worlds[-1]

    yield make
    while worlds:
        worlds.pop().close()


def test_it_writes_what_every_member_sends(make: Callable[[str], World], tmp_path: Path) -> None:
    world = make(f"file={tmp_path}/a.pcap,len=80")
    client = world.client
    world.members[0].send([frame(1)])
    world.net.run_until(START + 10**9)
    world.members[1].send([frame(2, 81), frame(3)])
    with RawPcapReader(str(tmp_path / "a.pcap")) as r:
        got = [(data, meta.sec, meta.usec, meta.wirelen) for data, meta in r]
    assert got == [
        (frame(1), 1_700_000_000, 123_456, 60),
        (frame(2, 81)[:80], 1_700_000_001, 123_456, 81),
        (frame(3), 1_700_000_001, 123_456, 60),
    ]
    assert client.frames == 3
    assert client.stats()["rx_packets"] == 3
    assert client.info_str == f"dump to {tmp_path / 'a.pcap'} (len=80)"
    assert (client.name, client.model) == ("d0", "dump")
    assert world.members[0].recv() == [frame(2, 81), frame(3)]


@pytest.mark.tshark
def test_pcapng_by_its_name(make: Callable[[str], World], tmp_path: Path) -> None:
    world = make(f"file={tmp_path}/a.pcapng")
    world.members[0].send([frame(1)])
    with RawPcapNgReader(str(tmp_path / "a.pcapng")) as r:
        ((data, meta),) = list(r)
    assert data == frame(1)
    assert (meta.tshigh << 32) + meta.tslow == START
    fields = ["-T", "fields", "-e", "frame.interface_name"]
    out = subprocess.run(["tshark", "-n", "-r", tmp_path / "a.pcapng", *fields], capture_output=True, text=True, check=True)
    assert out.stdout == "d0\n"


def test_super_frames_are_written_as_they_were_sent(make: Callable[[str], World], tmp_path: Path) -> None:
    """Nothing is segmented for a capture; what is longer than len is cut."""
    world = make(f"file={tmp_path}/a.pcap")
    offload = {"flags": 1, "gso_type": 1, "hdr_len": 54, "gso_size": 1460, "csum_start": 34, "csum_offset": 16}
    world.members[0].send([frame(1, 69632)], offload=offload)
    assert (tmp_path / "a.pcap").stat().st_size == 24 + 16 + 65536
    assert world.members[1].recv() == [frame(1, 69632)]


def test_a_burst_is_one_system_call(make: Callable[[str], World], tmp_path: Path) -> None:
    world = make(f"file={tmp_path}/a.pcap")
    client = world.client
    opened = client.writes
    world.members[0].send([frame(i) for i in range(64)])
    assert client.writes == opened + 1


def test_a_closed_one_closes_its_file(make: Callable[[str], World], tmp_path: Path) -> None:
    world = make(f"file={tmp_path}/a.pcap")
    client = world.client
    world.members[0].send([frame(1)])
    client.close()
    client.close()
    world.members[0].send([frame(2)])
    assert client.frames == 1


def test_options_and_errors(tmp_path: Path) -> None:
    assert dump.Options() == dump.Options(file="qemu-vlan0.pcap", len=65536)
    with Net() as net:
        for size in "0", "4G":
            with pytest.raises(OptionError, match="Parameter 'len' doesn't take value"):
                net.net_add(f"dump,file={tmp_path}/x,len={size}")
        with pytest.raises(HostError) as e:
            net.net_add(f"dump,file={tmp_path}/no/x")
        assert e.value.text == f"net dump: can't open {tmp_path}/no/x: No such file or directory"
        with pytest.raises(OptionError, match="Parameter 'type' does not accept value 'dump'; -net takes it"):
            net.netdev_add(f"dump,id=d,file={tmp_path}/x")
        assert net.info_network() == ""
    assert list(tmp_path.iterdir()) == []
