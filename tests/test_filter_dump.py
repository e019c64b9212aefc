"""filter-dump: what stands in the file, who is seen sending what, and where the filter stands in its chain."""

import json
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.utils import RawPcapNgReader, RawPcapReader

from qnet import HostError, Net, OptionError, VirtualClock
from qnet._loop import Loop
from qnet.filters._filters import DumpFilter
from qnet.testing import Port

START = 1_700_000_000_123_456_789
GSO = {"flags": 1, "gso_type": 1, "hdr_len": 54, "gso_size": 1460, "csum_start": 34, "csum_offset": 16}


def frame(n: int, size: int = 60) -> bytes:
    """An Ethernet frame of an unassigned type with a number in it."""
    return (b"\x52\x54\x00\x12\x34\x57" b"\x52\x54\x00\x12\x34\x56" b"\x88\xb5" + struct.pack("!I", n)).ljust(size, b"\xa5")[:size]


def tshark(path: Path, *fields: str) -> list[list[str]]:
    """Rows of fields; fails if tshark had anything to complain about but being root."""
    args = [arg for field in fields or ("frame.number",) for arg in ("-e", field)]
    run = subprocess.run(["tshark", "-n", "-r", path, "-T", "fields", *args], capture_output=True, text=True)
    complaints = [line for line in run.stderr.splitlines() if not line.startswith("Running as user")]
    assert run.returncode == 0
    assert not complaints
    return [line.split("\t") for line in run.stdout.splitlines()]


def frames_in(path: Path) -> list[bytes]:
    """As scapy reads them: at most 65535 bytes each."""
    reader: Any = RawPcapNgReader if path.read_bytes()[:4] == b"\n\r\r\n" else RawPcapReader
    with reader(str(path)) as r:
        return [data for data, _ in r]


class World:
    """netdev n0 and its peer, a NIC; filters are closed at the end."""

    def __init__(self, path: Path, clock: VirtualClock | None) -> None:
        self.path = path
        self.loop = Loop(clock=clock)
        self.n0 = Port(self.loop, "n0", "port", takes="all")
        self.nic = Port(self.loop, "nic0", "e1000", is_nic=True, takes="all")
        self.n0.pair(self.nic)
        self.filters: list[DumpFilter] = []

    def dump(self, name: str = "a.pcapng", queue: Any = "all", before: DumpFilter | None = None, **options: Any) -> DumpFilter:
        f = DumpFilter(self.n0, self.path / name, **options)
        f.insert(queue, before)
        self.filters.append(f)
        return f

    def close(self) -> None:
        for f in self.filters:
            f.close()
        self.n0.close()
        self.nic.close()
        self.loop.close()
        vars(self).clear()                      # pytest keeps the object until all fixtures are torn down


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    w = World(tmp_path, VirtualClock(START))
    yield w
    w.close()


# ------------------------------------------------------------------------------------------------------------- the files


def test_pcap_is_what_qemu_writes(world: World) -> None:
    """2.4, microseconds, snaplen is maxlen, linktype 1, mode 0644, truncated."""
    path = world.path / "a.pcap"
    path.write_bytes(b"old" * 100)
    world.dump("a.pcap", maxlen=100)
    world.n0.send([frame(1, 99), frame(2, 101)])
    data = path.read_bytes()
    assert data[:24] == struct.pack("=IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 100, 1)
    assert data[24:40] == struct.pack("=IIII", START // 10**9, 123456, 99, 99)
    assert data[40:139] == frame(1, 99)
    assert data[139:155] == struct.pack("=IIII", START // 10**9, 123456, 100, 101)
    assert data[155:] == frame(2, 101)[:100]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.qemu
def test_pcap_header_is_that_of_a_real_qemu(world: World) -> None:
    real = world.path / "qemu.pcap"
    args = ["-machine", "none", "-nodefaults", "-display", "none", "-monitor", "stdio", "-netdev", "hubport,id=n0,hubid=0"]
    args += ["-object", f"filter-dump,id=f0,netdev=n0,file={real},maxlen=1234"]
    subprocess.run(["qemu-system-x86_64", *args], input=b"quit\n", capture_output=True, check=True, timeout=60)
    world.dump("a.pcap", maxlen=1234)
    assert (world.path / "a.pcap").read_bytes() == real.read_bytes()


def test_format_follows_the_name_unless_it_is_said(world: World) -> None:
    assert world.dump("x.pcapng").format == "pcapng"
    assert world.dump("x.cap").format == "pcap"
    assert world.dump("y.cap", format="pcapng").format == "pcapng"
    assert world.dump("y.pcapng", format="pcap").format == "pcap"
    assert (world.path / "y.cap").read_bytes()[:4] == b"\n\r\r\n"


@pytest.mark.tshark
@pytest.mark.parametrize("name", ["a.pcap", "a.pcapng"])
def test_tshark_and_scapy_read_the_bytes_that_were_sent(world: World, name: str) -> None:
    """Sizes of every remainder modulo 4, long ones too, in one and in many pieces."""
    sizes = [1, 2, 3, 14, 59, *range(60, 70), 1514, 2047, 2048, 2049, 9000, 65535, 65536]
    frames = [frame(i, size) for i, size in enumerate(sizes)]
    world.dump(name)
    world.n0.send(frames)
    world.n0.send([[f[:7], b"", f[7:20], f[20:]] for f in frames])
    world.nic.send(frames)
    assert frames_in(world.path / name) == [f[:65535] for f in frames] * 3
    assert [int(row[0]) for row in tshark(world.path / name, "frame.len")] == sizes * 3


@pytest.mark.tshark
def test_pcapng_tells_who_sent_and_which_way(world: World) -> None:
    """F2: directions are the netdev's: what it sends is outbound, what the guest sends inbound."""
    world.dump()
    world.n0.send([frame(1)])
    world.nic.send([frame(2), frame(3)])
    world.n0.send([frame(4)])
    rows = tshark(world.path / "a.pcapng", "frame.interface_id", "frame.interface_name", "frame.packet_flags_direction")
    out, inn = ["0", "n0", "0x00000002"], ["1", "nic0", "0x00000001"]
    assert rows == [out, inn, inn, out]


@pytest.mark.tshark
def test_pcapng_stamps_are_the_virtual_clock_to_the_nanosecond(world: World) -> None:
    world.dump()
    for elapsed in (0, 1, 999_999_999, 86_400 * 10**9):
        world.loop.run_until(START + elapsed)
        world.n0.send([frame(elapsed & 0xFFFF)])
    stamps = [row[0] for row in tshark(world.path / "a.pcapng", "frame.time_epoch")]
    assert stamps == ["1700000000.123456789", "1700000000.123456790", "1700000001.123456788", "1700086400.123456789"]
    with RawPcapNgReader(str(world.path / "a.pcapng")) as r:
        assert {meta.tsresol for _, meta in r} == {10**9}


def test_stamps_of_a_real_clock_begin_at_the_wall_clock(tmp_path: Path) -> None:
    w = World(tmp_path, None)
    try:
        before = time.time_ns()
        w.dump()
        w.n0.send([frame(1)])
        after = time.time_ns()
        with RawPcapNgReader(str(tmp_path / "a.pcapng")) as r:
            _, meta = next(iter(r))
    finally:
        w.close()
    assert before <= (meta.tshigh << 32) + meta.tslow <= after


def test_same_input_same_bytes(tmp_path: Path) -> None:
    files = []
    for run in range(2):
        w = World(tmp_path, VirtualClock())
        w.dump(f"{run}.pcapng")
        w.n0.send([frame(1), frame(2, 777)])
        w.loop.run_until(5)
        w.nic.send([frame(3)])
        w.close()
        files.append((tmp_path / f"{run}.pcapng").read_bytes())
    assert files[0] == files[1]


@pytest.mark.tshark
def test_a_new_peer_is_a_new_interface(world: World) -> None:
    world.dump()
    world.nic.send([frame(1)])
    world.nic.close()
    second = Port(world.loop, "nic1", "e1000", is_nic=True)
    world.n0.pair(second)
    second.send([frame(2)])
    world.n0.send([frame(3)])
    second.close()
    assert tshark(world.path / "a.pcapng", "frame.interface_name") == [["nic0"], ["nic1"], ["n0"]]


@pytest.mark.tshark
def test_names_of_any_length_and_alphabet(tmp_path: Path) -> None:
    with_umlaut = "netz-für-ö" + "x" * 200
    loop = Loop(clock=VirtualClock())
    a, b = Port(loop, with_umlaut, "port"), Port(loop)
    a.pair(b)
    f = DumpFilter(a, tmp_path / "a.pcapng")
    f.insert()
    a.send([frame(1)])
    b.send([frame(2)])
    f.close()
    a.close()
    b.close()
    loop.close()
    names = [row[0] for row in tshark(tmp_path / "a.pcapng", "frame.interface_name")]
    assert with_umlaut.startswith(names[0])
    assert names[0].startswith("netz-für-öxxx")
    assert names[1] == "unnamed"


# ------------------------------------------------------------------------------------------------------ what is captured


@pytest.mark.tshark
def test_offload_frames_are_plain_bytes_and_snapped(world: World) -> None:
    """No vnet header among the bytes (unlike QEMU, B7). A super-frame is one record, cut at maxlen; nothing is changed on its way."""
    world.dump(maxlen=65536)
    big = frame(1, 69632)
    world.n0.send([big], offload=GSO)
    assert tshark(world.path / "a.pcapng", "frame.cap_len", "frame.len") == [["65536", "69632"]]
    assert big[:65536] in (world.path / "a.pcapng").read_bytes()
    assert world.nic.recv() == [big]
    assert world.nic.offloads[0]["gso_size"] == 1460


def test_a_frame_that_needs_its_checksum_is_captured_before_it_is_filled_in(world: World) -> None:
    world.nic.takes = "plain"
    world.dump()
    raw = frame(1, 101)
    world.n0.send([raw], offload={"flags": 1, "csum_start": 34, "csum_offset": 16})
    assert frames_in(world.path / "a.pcapng") == [raw]
    (got,) = world.nic.recv()
    assert got != raw
    assert got[:50] + got[52:] == raw[:50] + raw[52:]


def test_status_off_captures_nothing(world: World) -> None:
    """F4."""
    f = world.dump()
    f.on = False
    world.n0.send([frame(1)])
    world.n0.set_link(False)
    world.n0.send([frame(2)])
    world.n0.set_link(True)
    f.on = True
    world.n0.send([frame(3)])
    assert frames_in(world.path / "a.pcapng") == [frame(3)]
    assert world.nic.recv() == [frame(1), frame(3)]


@pytest.mark.parametrize(("queue", "seen"), [("all", [1, 2]), ("tx", [1]), ("rx", [2])])
def test_queue_chooses_the_direction_from_the_netdevs_view(world: World, queue: str, seen: list[int]) -> None:
    """F2, for passing and for dropped frames."""
    world.dump(queue=queue)
    world.n0.send([frame(1)])
    world.nic.send([frame(2)])
    assert frames_in(world.path / "a.pcapng") == [frame(n) for n in seen]
    world.n0.set_link(False)
    world.n0.send([frame(1)])
    world.nic.send([frame(2)])
    assert frames_in(world.path / "a.pcapng") == [frame(n) for n in seen] * 2


def test_filters_in_a_row_all_see_the_frame(world: World) -> None:
    """Head, tail and in front of another; a removed one leaves the others in place."""
    tail = world.dump("tail.pcapng")
    head = world.dump("head.pcapng", before=tail)
    middle = world.dump("middle.pcapng", before=tail)
    world.n0.send([frame(1)])
    world.nic.send([frame(2)])
    assert (head.frames, middle.frames, tail.frames) == (2, 2, 2)
    middle.close()
    world.n0.send([frame(3)])
    assert (head.frames, middle.frames, tail.frames) == (3, 2, 3)
    assert frames_in(world.path / "middle.pcapng") == [frame(1), frame(2)]
    assert frames_in(world.path / "tail.pcapng") == [frame(1), frame(2), frame(3)]


def test_the_clients_end_ends_the_capture(world: World) -> None:
    """F6."""
    f = world.dump()
    world.n0.send([frame(1)])
    world.n0.close()
    world.nic.send([frame(2)])
    f.close()
    f.close()
    assert frames_in(world.path / "a.pcapng") == [frame(1)]


def test_a_burst_is_one_system_call(world: World) -> None:
    f = world.dump()
    opened = f.writes
    world.n0.send([frame(i, 1514) for i in range(64)])
    assert f.writes == opened + 1
    world.n0.send([frame(i) for i in range(64)])
    assert f.writes == opened + 2
    world.n0.send([frame(i, 9000) for i in range(64)])
    assert f.writes == opened + 3
    assert f.frames == 192


def test_a_burst_of_many_pieces_is_whole(world: World) -> None:
    """More pieces than one system call takes."""
    f = world.dump()
    whole = [frame(i, 3000) for i in range(64)]
    world.n0.send([[w[k : k + 50] for k in range(0, 3000, 50)] for w in whole])
    assert frames_in(world.path / "a.pcapng") == whole
    assert f.writes < 10


# ------------------------------------------------------------------------------------------------------------------ drops


@pytest.mark.tshark
def test_a_drop_before_the_filters_is_one_record_with_its_reason(world: World) -> None:
    """S10, S19: with the link down a frame reaches no filter."""
    world.dump()
    world.n0.set_link(False)
    world.n0.send([frame(1)])
    world.nic.send([frame(2)])
    rows = tshark(world.path / "a.pcapng", "frame.interface_name", "frame.packet_flags_direction", "frame.comment")
    assert rows == [["n0", "0x00000002", "dropped: link-down"], ["nic0", "0x00000001", "dropped: link-down"]]


@pytest.mark.tshark
def test_a_drop_behind_the_filters_is_a_second_record(world: World) -> None:
    """The frame passed the filter first; then the receiver's queue was full (S16)."""
    world.nic.close()
    full = Port(world.loop, "nic0", capacity=1)
    full.queue_limits = (1, 10**6)
    world.n0.pair(full)
    f = world.dump()
    world.n0.send([frame(1), frame(2), frame(3)])
    rows = tshark(world.path / "a.pcapng", "frame.comment")
    assert rows == [[""], [""], [""], ["dropped: queue-full"]]
    assert frames_in(world.path / "a.pcapng")[3] == frame(3)
    assert full.recv() == [frame(1)]
    assert f.frames == 4
    full.close()


def test_drops_off_and_pcap_hold_what_passed_only(world: World) -> None:
    quiet, pcap = world.dump("quiet.pcapng", drops=False), world.dump("a.pcap")
    world.n0.send([frame(1)])
    world.n0.set_link(False)
    world.n0.send([frame(2)])
    assert frames_in(world.path / "quiet.pcapng") == frames_in(world.path / "a.pcap") == [frame(1)]
    assert (quiet.frames, pcap.frames) == (1, 1)


@pytest.mark.tshark
def test_an_empty_frame_is_a_drop(world: World) -> None:
    """B26: dropped at the entry."""
    world.dump()
    world.n0.send([b"", frame(1)])
    comments = [row[0] for row in tshark(world.path / "a.pcapng", "frame.comment")]
    assert comments == ["dropped: empty", ""]
    assert world.nic.recv() == [frame(1)]


# --------------------------------------------------------------------------------------------------------------- rotation


@pytest.mark.tshark
@pytest.mark.parametrize("name", ["a.pcap", "a.pcapng"])
def test_rotation_by_size(world: World, name: str) -> None:
    """No file grows beyond the size; every file is whole by itself; the newest finished one is .1; order is kept."""
    f = world.dump(name, rotate_size=4000, rotate_count=100)
    frames = [frame(i, 60 + 37 * i % 500) for i in range(100)]
    world.n0.send(frames[:50])
    world.nic.send(frames[50:])
    numbers = sorted((int(p.suffix[1:]) for p in world.path.glob(name + ".*")), reverse=True)
    files = [world.path / f"{name}.{n}" for n in numbers] + [world.path / name]
    assert numbers == list(range(len(numbers), 0, -1))
    assert f.files == len(files) > 5
    assert all(p.stat().st_size <= 4000 for p in files)
    assert all(p.stat().st_size > 4000 - 620 for p in files[:-1])
    assert [data for p in files for data in frames_in(p)] == frames
    if name.endswith("ng"):
        names = [row[0] for p in files for row in tshark(p, "frame.interface_name")]
        assert names == ["n0"] * 50 + ["nic0"] * 50


def test_rotation_keeps_so_many(world: World) -> None:
    f = world.dump("a.pcap", rotate_size=200, rotate_count=2)
    for i in range(10):
        world.n0.send([frame(i, 100)])
    assert f.files == 10
    assert sorted(p.name for p in world.path.iterdir()) == ["a.pcap", "a.pcap.1", "a.pcap.2"]
    assert frames_in(world.path / "a.pcap.2") == [frame(7, 100)]


def test_a_record_larger_than_the_size_has_a_file_of_its_own(world: World) -> None:
    world.dump("a.pcap", rotate_size=100)
    world.n0.send([frame(1, 500), frame(2, 500)])
    assert frames_in(world.path / "a.pcap.1") == [frame(1, 500)]
    assert frames_in(world.path / "a.pcap") == [frame(2, 500)]


# ------------------------------------------------------------------------------------------------------ the control plane


@pytest.fixture
def net() -> Iterator[Net]:
    """A hub with n0, the other end of a socket, and n1, a sink."""
    with Net(clock=VirtualClock(START)) as n:
        for name, kind in ("n0", "socketpair"), ("n1", "null"):
            n.netdev_add(f"{kind},id={name}")
            n.netdev_add(f"hubport,id={name}.port,hubid=0,netdev={name}")
        yield n


def send(net: Net, frame: bytes) -> None:
    """n0 sends a frame."""
    socket: Any = net.client("n0")
    socket.socket.send(frame)
    net.pump()


def test_object_add(net: Net, tmp_path: Path) -> None:
    f: Any = net.object_add(f"filter-dump,id=f0,netdev=n0,file={tmp_path}/o,format=pcapng,maxlen=77,rotate-size=1K,rotate-count=3")
    assert (f.format, f.maxlen, f.path) == ("pcapng", 77, f"{tmp_path}/o")
    for i in range(20):
        send(net, frame(i, 200))
    assert f.files > 1
    assert len(frames_in(tmp_path / "o")[0]) == 77
    net.object_del("f0")
    send(net, frame(21))
    assert f.frames == 20


@pytest.mark.parametrize("form", ["text", "json", "keywords"])
def test_every_form_of_object_add(net: Net, tmp_path: Path, form: str) -> None:
    options = {"id": "f0", "netdev": "n0", "file": str(tmp_path / "a.pcapng"), "maxlen": 99, "drops": False}
    if form == "text":
        net.object_add("filter-dump," + ",".join(f"{k}={'off' if v is False else v}" for k, v in options.items()))
    elif form == "json":
        net.object_add(json.dumps({"qom-type": "filter-dump"} | options))
    else:
        net.object_add("filter-dump", **options)
    send(net, frame(1, 100))
    net.set_link("n0", False)
    send(net, frame(2))
    assert frames_in(tmp_path / "a.pcapng") == [frame(1, 99)]


def test_places_in_the_chain_and_status(net: Net, tmp_path: Path) -> None:
    """F1, F4. The order is what `info network` prints; a filter that is off writes nothing."""

    def add(name: str, rest: str = "") -> Any:
        return net.object_add(f"filter-dump,id={name},netdev=n0,file={tmp_path}/{name}{rest}")

    f = [add("a"), add("b", ",position=head"), add("c", ",position=id=a,insert=before"), add("d", ",position=tail,status=off"),
         add("e", ",position=id=b"), add("f", ",queue=rx")]  # fmt: skip
    order = [line.split(":")[0].removeprefix("  - ") for line in net.info_network().splitlines() if line.startswith("  - ")]
    assert order == ["b", "e", "c", "a", "d", "f"]
    send(net, frame(1))
    assert [g.frames for g in f] == [1, 1, 1, 0, 1, 0]
    f[3].on = True
    send(net, frame(2))
    assert [g.frames for g in f] == [2, 2, 2, 1, 2, 0]
    net.netdev_del("n0")                                    # F6
    assert not [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink() and str(tmp_path) in str(fd.readlink())]


def test_info_network_prints_what_qemu_prints(net: Net, tmp_path: Path) -> None:
    net.object_add(f"filter-dump,id=f0,netdev=n1,file={tmp_path}/a.pcap")
    line = next(line for line in net.info_network().splitlines() if "f0" in line)
    shown = dict(item.split("=", 1) for item in line.removeprefix("  - f0: ").split(","))
    assert shown == {
        "type": "filter-dump", "file": f"{tmp_path}/a.pcap", "maxlen": "65536", "position": "tail", "status": "on", "insert": "behind",
        "netdev": "n1", "queue": "all",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("netdev=n0", "Parameter 'file' is missing"),
        ("file={tmp}/x", "Parameter 'netdev' is missing"),
        ("netdev=zz,file={tmp}/x", "Parameter 'netdev' expects a network backend id"),
        ("netdev=n0,file={tmp}/x,maxlen=0", "Property 'filter-dump.maxlen' doesn't take value '0'"),
        ("netdev=n0,file={tmp}/x,maxlen=4294967296", "Parameter 'maxlen' expects uint32_t"),
        ("netdev=n0,file={tmp}/x,rotate-count=0", "Property 'filter-dump.rotate-count' doesn't take value '0'"),
        ("netdev=n0,file={tmp}/x,rotate-count=1001", "Property 'filter-dump.rotate-count' doesn't take value '1001'"),
        ("netdev=n0,file={tmp}/x,format=erf", "Parameter 'format' does not accept value 'erf'"),
        ("netdev=n0,file={tmp}/x,position=id=zz", "filter 'zz' not found"),
    ],
)
def test_bad_options_open_nothing(net: Net, tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(OptionError) as e:
        net.object_add("filter-dump,id=f0," + text.format(tmp=tmp_path))
    assert e.value.text == complaint
    assert list(tmp_path.iterdir()) == []
    assert "f0" not in net.info_network()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("{tmp}/no/x", "No such file or directory"),
        ("{tmp}", "Is a directory"),
        ("/dev/full", "No space left on device"),
        ("{tmp}/" + "x" * 300, "File name too long"),
        ("/" + "x" * 5000, "File name too long"),
    ],
)
def test_a_file_that_cannot_be_written(net: Net, tmp_path: Path, path: str, text: str) -> None:
    path = path.format(tmp=tmp_path)
    with pytest.raises(HostError) as e:
        net.object_add("filter-dump", id="f0", netdev="n0", file=path)
    assert e.value.text == f"net dump: can't open {path}: {text}"
    assert "f0" not in net.info_network()


def test_the_constructor_refuses_nonsense(world: World) -> None:
    with pytest.raises(ValueError, match="maxlen"):
        DumpFilter(world.n0, world.path / "x", maxlen=0)
    with pytest.raises(ValueError, match="rotate_count"):
        DumpFilter(world.n0, world.path / "x", rotate_size=1, rotate_count=0)
    with pytest.raises(ValueError, match="format"):
        DumpFilter(world.n0, world.path / "x", format="erf")
    assert list(world.path.iterdir()) == []
