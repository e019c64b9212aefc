"""csrc/ by itself: built with the undefined behaviour sanitizer, called through ctypes, checked against scapy and zlib.

Facts: X2 (checksum fix-up), T8 (what segmentation changes), T9 (a sum of 0 is stored as FFFF); CVE-2016-2857 (lengths are not believed),
CVE-2022-23087 (offsets outside the header), CVE-2015-6815 (header length and MSS of 0).
"""

import ctypes
import errno
import itertools
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP, IPOption_Router_Alert, in4_pseudoheader
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting, in6_chksum
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent / "csrc"
CC = [os.environ.get("CC", "cc"), "-std=c11", "-g", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}"]
TCPV4, TCPV6, UDP_L4 = 1, 4, 5
FIN, PSH, CWR = 1, 8, 128
IP4, IP4_OK, L4, L4_OK, IS_UDP = 1, 2, 4, 8, 16
SUM_OFFSET = {6: 16, 17: 6}


class Iovec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class Plan(ctypes.Structure):
    """struct qn_gso_plan."""

    _fields_ = (
        *[(name, ctypes.c_uint16) for name in ("hdr_len", "mss", "ip_off")],
        *[(name, ctypes.c_uint8) for name in ("ip_version", "l4_proto")],
        ("l4_off", ctypes.c_uint16),
        *[(name, ctypes.c_uint8) for name in ("ip_sum", "l4_sum")],
        *[(name, ctypes.c_uint16) for name in ("ip_sum_from", "ip_sum_at", "ip_sum_end", "l4_sum_from", "l4_sum_at", "l4_sum_end")],
        ("pseudo_len", ctypes.c_uint32),
    )


class Gso(ctypes.Structure):
    """struct qn_gso."""

    _fields_ = (
        ("plan", Plan),
        ("hdr", ctypes.c_uint8 * 256),
        ("iov", ctypes.c_void_p),
        ("iovcnt", ctypes.c_uint),
        ("iov_skip", ctypes.c_size_t),
        ("left", ctypes.c_size_t),
        ("seg", ctypes.c_uint32),
        ("nseg", ctypes.c_uint32),
        ("tcp_flags", ctypes.c_uint8),
    )


@pytest.fixture(scope="module", params=[[], ["-DQN_CSUM_BASELINE"]], ids=["native", "baseline"])
def lib(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    so = tmp_path_factory.mktemp("csrc") / "csrc.so"
    flags = ["-O2", "-shared", "-fPIC", "-fsanitize=undefined", "-fno-sanitize-recover=all", *request.param]
    subprocess.run([*CC, *flags, *map(str, sorted(CSRC.glob("*.c"))), "-o", str(so)], check=True)
    lib = ctypes.CDLL(str(so))
    for name in ("qn_csum", "qn_csum_add_odd", "qn_csum_iov", "qn_csum_pseudo4", "qn_csum_pseudo6"):
        getattr(lib, name).restype = ctypes.c_uint64
    lib.qn_csum_fold.restype = ctypes.c_uint16
    lib.qn_crc32.restype = ctypes.c_uint32
    return lib


class Iov:
    """Bytes as an iovec array cut at `cuts`, each piece at an odd address, an empty one with a null base after each."""

    def __init__(self, data: bytes, cuts: list[int]) -> None:
        edges = [0, *sorted({min(c, len(data)) for c in cuts}), len(data)]
        pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
        self.blocks = [ctypes.create_string_buffer(b"\xa5" + piece, len(piece) + 1) for piece in pieces]
        self.n = 2 * len(pieces)
        self.array = (Iovec * self.n)()
        self.array.blocks = self.blocks  # an Iov made for one call dies before the call
        for i, (block, piece) in enumerate(zip(self.blocks, pieces, strict=True)):
            self.array[2 * i] = Iovec(ctypes.addressof(block) + 1, len(piece))

    @property
    def args(self) -> tuple[ctypes.Array, ctypes.c_uint]:
        return self.array, ctypes.c_uint(self.n)

    def bytes(self) -> bytes:
        return b"".join(block.raw[1:] for block in self.blocks)


def fold(lib: ctypes.CDLL, total: int) -> int:
    """The complemented sum as a number in network order."""
    return int.from_bytes((lib.qn_csum_fold(ctypes.c_uint64(total)) ^ 0xFFFF).to_bytes(2, sys.byteorder), "big")


def same_sum(a: int, b: int) -> bool:
    """Equal as ones' complement numbers: 0 and FFFF are both zero."""
    return a % 0xFFFF == b % 0xFFFF


cuts = st.lists(st.integers(0, 6000), max_size=6)
long_blobs = st.builds(lambda seed, n: (seed * n)[:n], st.binary(min_size=1, max_size=64), st.integers(0, 5000))
blobs = st.one_of(st.binary(max_size=300), long_blobs)


@given(data=blobs)
@example(data=b"\xff" * 4096)
def test_sum_of_bytes_is_scapys(lib: ctypes.CDLL, data: bytes) -> None:
    buffer = ctypes.create_string_buffer(data)
    for at in range(2):
        size = max(0, len(data) - at)
        total = lib.qn_csum(ctypes.byref(buffer, at), ctypes.c_size_t(size), ctypes.c_uint64(0))
        assert same_sum(fold(lib, total), checksum(data[at:]))


def test_sum_of_every_length(lib: ctypes.CDLL) -> None:
    data = bytes((7 * i * i + 3) & 0xFF for i in range(400))
    for n in range(len(data)):
        assert fold(lib, lib.qn_csum(data, ctypes.c_size_t(n), ctypes.c_uint64(0))) == checksum(data[:n])


@given(data=blobs, cuts=cuts, off=st.integers(0, 400), size=st.integers(0, 6000))
def test_sum_of_any_split_is_that_of_the_bytes(lib: ctypes.CDLL, data: bytes, cuts: list[int], off: int, size: int) -> None:
    total = lib.qn_csum_iov(*Iov(data, cuts).args, ctypes.c_size_t(off), ctypes.c_size_t(size), ctypes.c_uint64(0))
    assert same_sum(fold(lib, total), checksum(data[off : off + size]))


@given(head=blobs.filter(lambda b: len(b) % 2 == 1), tail=blobs)
def test_sums_join_at_an_odd_offset(lib: ctypes.CDLL, head: bytes, tail: bytes) -> None:
    parts = [lib.qn_csum(b, ctypes.c_size_t(len(b)), ctypes.c_uint64(0)) for b in (head, tail)]
    total = lib.qn_csum_add_odd(*map(ctypes.c_uint64, parts))
    assert same_sum(fold(lib, total), checksum(head + tail))


@given(total=st.integers(0, 2**64 - 1))
@example(total=0)
@example(total=2**64 - 1)
def test_fold_is_the_remainder_and_zero_only_for_zero(lib: ctypes.CDLL, total: int) -> None:
    folded = lib.qn_csum_fold(ctypes.c_uint64(total))
    assert folded % 0xFFFF == total % 0xFFFF
    assert (folded == 0) == (total == 0)


@given(a=st.ip_addresses(v=4), b=st.ip_addresses(v=4), proto=st.sampled_from([6, 17]), size=st.integers(0, 65535))
def test_pseudo_header_of_ipv4(lib: ctypes.CDLL, a: object, b: object, proto: int, size: int) -> None:
    total = lib.qn_csum_pseudo4(a.packed, b.packed, ctypes.c_uint8(proto), ctypes.c_uint32(size))
    assert same_sum(fold(lib, total), checksum(in4_pseudoheader(proto, IP(src=str(a), dst=str(b)), size)))


@given(a=st.ip_addresses(v=6), b=st.ip_addresses(v=6), proto=st.sampled_from([6, 17]), size=st.integers(0, 200000))
def test_pseudo_header_of_ipv6(lib: ctypes.CDLL, a: object, b: object, proto: int, size: int) -> None:
    total = lib.qn_csum_pseudo6(a.packed, b.packed, ctypes.c_uint8(proto), ctypes.c_uint32(size))
    if size < 65536:
        assert same_sum(fold(lib, total), in6_chksum(proto, IPv6(src=str(a), dst=str(b)), bytes(size)))
    assert same_sum(fold(lib, total), checksum(a.packed + b.packed + struct.pack(">II", size, proto)))


@given(data=blobs)
@example(data=b"123456789")
def test_crc32_is_zlibs(lib: ctypes.CDLL, data: bytes) -> None:
    assert lib.qn_crc32(data, ctypes.c_size_t(len(data))) == zlib.crc32(data)


@dataclass
class Frame:
    """A frame with right lengths and checksums, and where its headers are."""

    packet: Packet
    proto: int
    ip_version: int
    ip_off: int
    l4_off: int
    hdr_len: int
    bytes: bytes = field(default=b"")

    def __post_init__(self) -> None:
        self.bytes = bytes(self.packet)

    def with_seed(self) -> bytes:
        """As a sender with VIRTIO_NET_HDR_F_NEEDS_CSUM leaves it: a pseudo-header sum where the checksum belongs."""
        data = bytearray(self.bytes)
        size = len(data) - self.l4_off
        lo, hi = (12, 20) if self.ip_version == 4 else (8, 40)
        addresses = bytes(data[self.ip_off + lo : self.ip_off + hi])
        seed = checksum(addresses + struct.pack(">II", size, self.proto)) ^ 0xFFFF
        struct.pack_into(">H", data, self.l4_off + SUM_OFFSET[self.proto], seed)
        return bytes(data)


EXTENSIONS = (IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt, lambda: IPv6ExtHdrRouting(addresses=["2001:db8::7"], segleft=0))


@st.composite
def frames(draw: st.DrawFn, payload: st.SearchStrategy[int] = st.integers(1, 3000)) -> Frame:  # noqa: B008
    """TCP or UDP over IPv4 or IPv6 under zero to two tags, with options, of random bytes."""
    packet = Ether(src=draw(st.binary(min_size=6, max_size=6)), dst=b"\x02\x00\x00\x00\x00\x01")
    tags = draw(st.integers(0, 2))
    if tags == 2:
        packet /= draw(st.sampled_from([Dot1AD, Dot1Q]))(vlan=draw(st.integers(0, 4095)))
    if tags:
        packet /= Dot1Q(vlan=draw(st.integers(0, 4095)), prio=draw(st.integers(0, 7)))
    version = draw(st.sampled_from([4, 6]))
    if version == 4:
        options = draw(st.lists(st.sampled_from([IPOption_NOP, IPOption_Router_Alert]), max_size=8))
        ip = IP(
            src=str(draw(st.ip_addresses(v=4))),
            dst=str(draw(st.ip_addresses(v=4))),
            id=draw(st.integers(0, 65535)),
            options=[o() for o in options],
        )
    else:
        ip = IPv6(src=str(draw(st.ip_addresses(v=6))), dst=str(draw(st.ip_addresses(v=6))), fl=draw(st.integers(0, 2**20 - 1)))
        for extension in draw(st.lists(st.sampled_from(EXTENSIONS), max_size=3)):
            ip /= extension()
    ports = {"sport": draw(st.integers(1, 65535)), "dport": draw(st.integers(1, 65535))}
    if draw(st.booleans()):
        words = draw(st.integers(0, 10))
        l4 = TCP(**ports, seq=draw(st.integers(0, 2**32 - 1)), flags=draw(st.integers(0, 255)), options=[("NOP", None)] * (4 * words))
    else:
        l4 = UDP(**ports)
    seed = draw(st.binary(min_size=1, max_size=40))
    size = draw(payload)
    ip_off, l4_off = 14 + 4 * tags, 14 + 4 * tags + len(ip)
    proto = 6 if isinstance(l4, TCP) else 17
    return Frame(packet / ip / l4 / Raw((seed * size)[:size]), proto, version, ip_off, l4_off, l4_off + len(l4))


@given(frame=frames(), cuts=cuts)
def test_missing_checksum_is_found_and_the_frame_left_alone(lib: ctypes.CDLL, frame: Frame, cuts: list[int]) -> None:
    """X2: the value for the field of a NEEDS_CSUM packet; B16: the sender's bytes stay."""
    iov, out = Iov(frame.with_seed(), cuts), ctypes.c_uint16()
    offset = SUM_OFFSET[frame.proto]
    assert lib.qn_csum_partial_value(*iov.args, ctypes.c_size_t(len(frame.bytes)), frame.l4_off, offset, ctypes.byref(out)) == 0
    right = frame.bytes[frame.l4_off + offset :][:2]
    assert bytes(out) == (right if right != b"\0\0" else b"\xff\xff")
    assert iov.bytes() == frame.with_seed()


def test_missing_checksum_of_zero_is_ffff(lib: ctypes.CDLL) -> None:
    out = ctypes.c_uint16()
    assert lib.qn_csum_partial_value(*Iov(b"\xff\xff\x00\x00", []).args, ctypes.c_size_t(4), 0, 2, ctypes.byref(out)) == 0
    assert out.value == 0xFFFF


@pytest.mark.parametrize(
    ("size", "start", "offset"),
    [(60, 59, 0), (60, 34, 25), (60, 60, 0), (61, 34, 16), (1, 0, 0), (0, 0, 0), (60, 0xFFFFFFFF, 0xFFFFFFFF), (60, 2, 0xFFFFFFFE)],
)
def test_missing_checksum_that_does_not_fit(lib: ctypes.CDLL, size: int, start: int, offset: int) -> None:
    out = ctypes.c_uint16(7)
    iov = Iov(bytes(60), [3])
    rc = lib.qn_csum_partial_value(*iov.args, ctypes.c_size_t(size), ctypes.c_uint(start), ctypes.c_uint(offset), ctypes.byref(out))
    assert rc == -errno.EINVAL
    assert out.value == 7


def rx_check(lib: ctypes.CDLL, data: bytes, cuts: list[int] | None = None) -> int:
    return lib.qn_rx_csum_check(*Iov(data, cuts or []).args, ctypes.c_size_t(len(data)))


def ipv4_flags(frame: Frame) -> int:
    return IP4 | IP4_OK if frame.ip_version == 4 else 0


@given(frame=frames(), cuts=cuts, padding=st.binary(max_size=20))
def test_received_frame_with_good_sums(lib: ctypes.CDLL, frame: Frame, cuts: list[int], padding: bytes) -> None:
    udp = IS_UDP if frame.proto == 17 else 0
    assert rx_check(lib, frame.bytes + padding, cuts) == ipv4_flags(frame) | L4 | L4_OK | udp


@given(frame=frames(), where=st.integers(0, 10000), bit=st.integers(0, 7))
def test_received_frame_with_a_bit_turned_is_never_good(lib: ctypes.CDLL, frame: Frame, where: int, bit: int) -> None:
    """One bit always changes a ones' complement sum; what it does to lengths and kinds may make the frame uncheckable."""
    data = bytearray(frame.bytes)
    at = frame.ip_off + where % (len(data) - frame.ip_off)
    data[at] ^= 1 << bit
    flags = rx_check(lib, bytes(data))
    if at < frame.l4_off and frame.ip_version == 4:
        assert not flags & IP4_OK
    if at >= frame.hdr_len:
        assert flags == ipv4_flags(frame) | L4 | (IS_UDP if frame.proto == 17 else 0)


@given(frame=frames(payload=st.integers(1, 60)))
def test_received_frame_cut_short_is_never_checkable(lib: ctypes.CDLL, frame: Frame) -> None:
    """CVE-2016-2857: the IP length is not believed."""
    for size in range(len(frame.bytes)):
        flags = rx_check(lib, frame.bytes[:size])
        assert not flags & (L4 | L4_OK | IS_UDP)
        assert not flags or size >= frame.ip_off + 20


UNCHECKABLE = {
    "fragment": (Ether() / IP(frag=3) / UDP() / b"abc", IP4 | IP4_OK),
    "first fragment": (Ether() / IP(flags="MF") / UDP() / b"abc", IP4 | IP4_OK),
    "do not fragment": (Ether() / IP(flags="DF") / UDP() / b"abc", IP4 | IP4_OK | L4 | L4_OK | IS_UDP),
    "IPv6 fragment": (Ether() / IPv6() / IPv6ExtHdrFragment(m=1) / UDP() / b"abc", 0),
    "IPv6 on its way": (Ether() / IPv6() / IPv6ExtHdrRouting(addresses=["::5"], segleft=1) / UDP() / b"abc", 0),
    "no UDP checksum": (Ether() / IP() / UDP(chksum=0) / b"abc", IP4 | IP4_OK),
    "UDP longer than IP": (Ether() / IP() / UDP(len=12) / b"abc", IP4 | IP4_OK),
    "UDP shorter than itself": (Ether() / IP() / UDP(len=7) / b"abc", IP4 | IP4_OK),
    "TCP header longer than the frame": (Ether() / IP() / TCP(dataofs=15) / b"abc", IP4 | IP4_OK),
    "TCP header shorter than itself": (Ether() / IP() / TCP(dataofs=4) / b"abc", IP4 | IP4_OK),
    "IP longer than the frame": (Ether() / IP(len=44) / TCP() / b"abc", IP4 | IP4_OK),
    "IP shorter than its headers": (Ether() / IP(len=39) / TCP() / b"abc", IP4 | IP4_OK),
    "other protocol": (Ether() / IP(proto=1) / b"\x08\x00abcdefgh", IP4 | IP4_OK),
    "IPv4 with a wrong sum": (Ether() / IP(chksum=1) / TCP() / b"abc", IP4 | L4 | L4_OK),
    "IPv4 of version 5": (Ether() / IP(version=5) / TCP() / b"abc", 0),
    "IPv4 header shorter than itself": (Ether() / IP(ihl=4) / TCP() / b"abc", 0),
    "three tags": (Ether() / Dot1Q() / Dot1Q() / Dot1Q() / IP() / TCP(), 0),
    "ARP": (Ether(type=0x0806) / bytes(46), 0),
}


@pytest.mark.parametrize("case", UNCHECKABLE)
def test_received_frame_is_judged_like_a_nic(lib: ctypes.CDLL, case: str) -> None:
    """Intel 8254x manual 3.2.9."""
    packet, flags = UNCHECKABLE[case]
    assert rx_check(lib, bytes(packet)) == flags


def test_received_frame_with_headers_past_the_prefix_is_not_checkable(lib: ctypes.CDLL) -> None:
    data = bytes(Ether() / IPv6() / IPv6ExtHdrRouting(addresses=["::5"] * 13, segleft=0) / UDP() / b"abc")
    assert rx_check(lib, data) == 0


def test_received_frame_shorter_than_it_claims(lib: ctypes.CDLL) -> None:
    data = bytes(Ether() / IP() / UDP() / b"abc")
    assert lib.qn_rx_csum_check(*Iov(data, [5]).args, ctypes.c_size_t(len(data) + 1)) == 0


def make_plan(lib: ctypes.CDLL, iov: Iov, size: int, gso: tuple[int, int], csum: tuple[int, int]) -> Plan | int:
    plan = Plan()
    rc = lib.qn_gso_plan_vnet(ctypes.byref(plan), *iov.args, ctypes.c_size_t(size), *map(ctypes.c_uint, gso), *map(ctypes.c_uint, csum))
    return rc or plan


def segments(lib: ctypes.CDLL, plan: Plan, iov: Iov, size: int, limit: int = 64) -> Iterator[bytes]:
    gso, hdr, out, got = Gso(), (ctypes.c_uint8 * plan.hdr_len)(), (Iovec * limit)(), ctypes.c_size_t()
    nseg = lib.qn_gso_start(ctypes.byref(gso), ctypes.byref(plan), *iov.args, ctypes.c_size_t(size))
    if nseg < 1:
        raise OSError(-nseg, "qn_gso_start")
    for _ in range(nseg):
        used = lib.qn_gso_next(ctypes.byref(gso), hdr, out, ctypes.c_uint(limit), ctypes.byref(got))
        assert 2 <= used <= limit
        assert out[0].base == ctypes.addressof(hdr)
        segment = b"".join(ctypes.string_at(out[i].base, out[i].len) for i in range(used))
        assert len(segment) == got.value
        yield segment
    assert lib.qn_gso_next(ctypes.byref(gso), hdr, out, ctypes.c_uint(limit), ctypes.byref(got)) == 0


def gso_type(frame: Frame) -> int:
    return UDP_L4 if frame.proto == 17 else TCPV4 if frame.ip_version == 4 else TCPV6


def rebuilt(data: bytes) -> bytes:
    """The frame as scapy would have sent it: lengths and checksums its own."""
    packet = Ether(data)
    for layer, fields in ((IP, ("len", "chksum")), (IPv6, ("plen",)), (UDP, ("len", "chksum")), (TCP, ("chksum",))):
        for name in fields if layer in packet else ():
            packet[layer].delfieldval(name)
    out = bytearray(bytes(packet))
    if TCP in packet:
        at = len(data) - len(packet[TCP]) + 16
        if out[at : at + 2] == b"\0\0":
            out[at : at + 2] = b"\xff\xff"
    return bytes(out)


@given(frame=frames(), cuts=cuts, parts=st.integers(1, 9), zero_lengths=st.booleans())
def test_segments_are_what_the_sender_would_have_sent(
    lib: ctypes.CDLL, frame: Frame, cuts: list[int], parts: int, zero_lengths: bool
) -> None:
    """T8: lengths, identification, sequence numbers and flags of each segment; payload whole and in order; every checksum right."""
    payload = frame.bytes[frame.hdr_len :]
    mss = -(-len(payload) // parts)
    data = bytearray(frame.with_seed())
    if frame.ip_version == 4:
        struct.pack_into(">H", data, frame.ip_off + 10, 0xDEAD)  # the sender's header checksum is not looked at
    if zero_lengths:
        struct.pack_into(">H", data, frame.ip_off + (2 if frame.ip_version == 4 else 4), 0)
    iov = Iov(bytes(data), cuts)
    plan = make_plan(lib, iov, len(data), (gso_type(frame), mss), (frame.l4_off, SUM_OFFSET[frame.proto]))
    assert isinstance(plan, Plan)
    assert plan.hdr_len == frame.hdr_len
    got = list(segments(lib, plan, iov, len(data)))
    assert len(got) == -(-len(payload) // mss)
    assert b"".join(s[frame.hdr_len :] for s in got) == payload
    assert all(len(s) == frame.hdr_len + mss for s in got[:-1])
    whole = Ether(frame.bytes)
    for n, segment in enumerate(got):
        assert segment == rebuilt(segment)
        assert segment[: frame.ip_off] == frame.bytes[: frame.ip_off]
        packet = Ether(segment)
        if frame.ip_version == 4:
            assert packet[IP].id == (whole[IP].id + n) & 0xFFFF
        if frame.proto == 6:
            gone = (0 if n == len(got) - 1 else FIN | PSH) | (CWR if n else 0)
            assert packet[TCP].seq == (whole[TCP].seq + n * mss) & 0xFFFFFFFF
            assert int(packet[TCP].flags) == int(whole[TCP].flags) & ~gone
        flags = ipv4_flags(frame) | L4 | L4_OK | (IS_UDP if frame.proto == 17 else 0)
        assert rx_check(lib, segment) == flags
    assert iov.bytes() == bytes(data)


def nic_plan(mss: int) -> Plan:
    """As a NIC model fills it for TCP over IPv4 with no options: the seed has no length in it (8254x manual 3.5.7)."""
    return Plan(54, mss, 14, 4, 6, 34, 1, 1, 14, 24, 34, 34, 50, 0, 0)


def test_segments_of_a_nic_whose_seed_has_no_length(lib: ctypes.CDLL) -> None:
    data = bytearray(bytes(Ether() / IP(len=0, chksum=0) / TCP(flags="PA") / bytes(range(250))))
    struct.pack_into(">H", data, 50, checksum(bytes(data[26:34]) + b"\0\6") ^ 0xFFFF)
    got = list(segments(lib, nic_plan(100), Iov(bytes(data), [7, 60, 61]), len(data)))
    assert [len(s) for s in got] == [154, 154, 104]
    assert [s == rebuilt(s) for s in got] == [True] * 3


def test_a_plan_may_leave_ip_and_l4_alone(lib: ctypes.CDLL) -> None:
    data = bytes(range(100))
    plan = Plan(hdr_len=40, mss=25)
    assert list(segments(lib, plan, Iov(data, [1, 50]), 100)) == [data[:65], data[:40] + data[65:90], data[:40] + data[90:]]


def test_checksum_range_may_end_before_the_frame_or_after(lib: ctypes.CDLL) -> None:
    """T9: the range is clamped to the segment; the seed takes part where it stands."""
    data = bytes(range(100))
    for end in (21, 30, 45, 70, 60000):
        plan = Plan(hdr_len=40, mss=25, l4_off=20, l4_sum=1, l4_sum_from=10, l4_sum_at=20, l4_sum_end=end)
        for segment in segments(lib, plan, Iov(data, [41]), 100):
            seeded = bytearray(segment)
            struct.pack_into(">H", seeded, 20, (0x1415 + len(segment) - 20))
            assert struct.unpack_from(">H", segment, 20)[0] == checksum(bytes(seeded[10:end]))


@pytest.mark.parametrize("which", ["ip", "l4"])
def test_a_sum_of_zero_is_stored_as_ffff(lib: ctypes.CDLL, which: str) -> None:
    """T9, for both sums."""
    data = b"\xff\xff\x00\x00" + bytes(6)
    plan = Plan(hdr_len=4, mss=6, **{f"{which}_sum": 1, f"{which}_sum_at": 2, f"{which}_sum_end": 2, "l4_off": 4, "pseudo_len": 6})
    (segment,) = segments(lib, plan, Iov(data, []), 10)
    assert segment[2:4] == b"\xff\xff"


def test_an_iovec_too_many_leaves_the_state_as_it_was(lib: ctypes.CDLL) -> None:
    data = bytes(range(200))
    iov, plan, gso = Iov(data, [50, 60, 70, 71]), Plan(hdr_len=20, mss=100), Gso()
    hdr, got = ctypes.create_string_buffer(20), ctypes.c_size_t()
    assert lib.qn_gso_start(ctypes.byref(gso), ctypes.byref(plan), *iov.args, ctypes.c_size_t(200)) == 2
    before, out = bytes(gso), (Iovec * 6)()
    for limit in range(6):
        assert lib.qn_gso_next(ctypes.byref(gso), hdr, out, ctypes.c_uint(limit), ctypes.byref(got)) == -errno.ENOSPC
        assert bytes(gso) == before
    assert lib.qn_gso_next(ctypes.byref(gso), hdr, out, ctypes.c_uint(6), ctypes.byref(got)) == 6
    assert b"".join(ctypes.string_at(v.base, v.len) for v in out) == data[:120]


GOOD = {"hdr_len": 54, "mss": 100, "ip_off": 14, "ip_version": 4, "l4_proto": 6, "l4_off": 34, "ip_sum": 1, "l4_sum": 1} | {
    "ip_sum_from": 14, "ip_sum_at": 24, "ip_sum_end": 34, "l4_sum_from": 34, "l4_sum_at": 50, "l4_sum_end": 0, "pseudo_len": 0
}  # fmt: skip
BAD = [
    {"hdr_len": 0}, {"hdr_len": 257}, {"hdr_len": 65535}, {"hdr_len": 300}, {"mss": 0}, {"mss": 0, "hdr_len": 0},
    {"ip_version": 5}, {"ip_off": 35}, {"ip_off": 65535}, {"ip_version": 6, "ip_off": 15}, {"l4_proto": 1},
    {"l4_off": 35}, {"l4_off": 65535}, {"l4_proto": 17, "l4_off": 47}, {"l4_proto": 0, "l4_off": 55},
    {"ip_sum_from": 54}, {"ip_sum_at": 53}, {"ip_sum_at": 65535}, {"ip_sum_end": 14}, {"ip_sum_end": 3},
    {"l4_sum_from": 54}, {"l4_sum_at": 53}, {"l4_sum_at": 65535}, {"l4_sum_end": 34}, {"l4_sum_end": 1},
]  # fmt: skip


def start(lib: ctypes.CDLL, plan: Plan, size: int, have: int) -> int:
    return lib.qn_gso_start(ctypes.byref(Gso()), ctypes.byref(plan), *Iov(bytes(have), [10]).args, ctypes.c_size_t(size))


@pytest.mark.parametrize("change", BAD, ids=str)
def test_a_plan_that_leaves_the_header_is_refused(lib: ctypes.CDLL, change: dict[str, int]) -> None:
    """CVE-2022-23087, CVE-2015-6815."""
    assert start(lib, Plan(**GOOD), 300, 300) == 3
    assert start(lib, Plan(**(GOOD | change)), 300, 300) == -errno.EINVAL


def test_sizes_that_do_not_fit_are_refused(lib: ctypes.CDLL) -> None:
    assert start(lib, Plan(**GOOD), 54, 54) == -errno.EINVAL  # no payload
    assert start(lib, Plan(**GOOD), 301, 300) == -errno.EINVAL  # less there than said
    assert start(lib, Plan(hdr_len=4, mss=1), 4 + 65535, 70000) == 65535
    assert start(lib, Plan(hdr_len=4, mss=1), 4 + 65536, 70000) == -errno.EINVAL
    assert start(lib, Plan(**(GOOD | {"mss": 65495})), 70000, 70000) == 2
    assert start(lib, Plan(**(GOOD | {"mss": 65496})), 70000, 70000) == -errno.EINVAL  # more than an IP length holds


def test_fields_of_a_vnet_header_that_do_not_fit_are_refused(lib: ctypes.CDLL) -> None:
    frame = bytes(Ether() / IP() / TCP() / bytes(300))
    iov, good = Iov(frame, [20]), ((TCPV4, 100), (34, 16))
    assert isinstance(make_plan(lib, iov, len(frame), *good), Plan)
    for gso, csum in [
        ((TCPV6, 100), (34, 16)), ((UDP_L4, 100), (34, 16)), ((UDP_L4, 100), (34, 6)), ((0, 100), (34, 16)), ((3, 100), (34, 16)),
        ((TCPV4 | 0x80, 100), (34, 16)), ((TCPV4, 0), (34, 16)), ((TCPV4, 65536), (34, 16)),
        ((TCPV4, 100), (33, 16)), ((TCPV4, 100), (34, 6)), ((TCPV4, 100), (0xFFFFFFFF, 16)), ((TCPV4, 100), (34, 0xFFFFFFFF)),
    ]:  # fmt: skip
        assert make_plan(lib, iov, len(frame), gso, csum) == -errno.EINVAL
    for size in (0, 13, 53, 54, len(frame) - 1, len(frame) + 1):
        assert make_plan(lib, iov, size, *good) == -errno.EINVAL


@pytest.mark.parametrize(
    "packet",
    [
        Ether() / IP(frag=1) / TCP() / bytes(300),
        Ether() / IP(flags="MF") / TCP() / bytes(300),
        Ether() / IP(len=100) / TCP() / bytes(300),
        Ether() / IP(len=400) / TCP() / bytes(300),
        Ether() / IP(version=6) / TCP() / bytes(300),
        Ether() / IP(ihl=4) / TCP() / bytes(300),
        Ether() / IP() / TCP(dataofs=4) / bytes(300),
        Ether(type=0x86DD) / IP() / TCP() / bytes(300),
        Ether(type=0x0806) / IP() / TCP() / bytes(300),
    ],
    ids=lambda p: p.command()[:60],
)
def test_frames_that_are_no_super_frame_are_refused(lib: ctypes.CDLL, packet: Packet) -> None:
    frame = bytes(packet)
    assert make_plan(lib, Iov(frame, []), len(frame), (TCPV4, 100), (34, 16)) == -errno.EINVAL


def test_ipv6_super_frames_that_cannot_be_cut_are_refused(lib: ctypes.CDLL) -> None:
    fragment = bytes(Ether() / IPv6() / IPv6ExtHdrFragment() / TCP() / bytes(300))
    assert make_plan(lib, Iov(fragment, []), len(fragment), (TCPV6, 100), (62, 16)) == -errno.EINVAL
    deep = bytes(Ether() / IPv6() / IPv6ExtHdrRouting(addresses=["::5"] * 13, segleft=0) / TCP() / bytes(300))
    assert make_plan(lib, Iov(deep, []), len(deep), (TCPV6, 100), (14 + 40 + 8 + 13 * 16, 16)) == -errno.EINVAL


def test_fuzz_under_the_address_sanitizer(tmp_path: Path) -> None:
    """Random frames, plans and iovecs; the harness checks payload, sums and the sender's bytes, the sanitizers every access."""
    exe = tmp_path / "fuzz"
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([*CC, *flags, *map(str, sorted(CSRC.glob("*.c"))), str(HERE / "csrc_fuzz.c"), "-o", str(exe)], check=True)
    run = subprocess.run([str(exe), "1", "20000"], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    frames, by_header, by_plan = (int(word) for word in run.stdout.split() if word.isdigit())
    assert frames == 20000
    assert by_header > 1000
    assert by_plan > 500
