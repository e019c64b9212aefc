"""csrc/bpf.c against the kernel: a unix datagram socket with a filter attached refuses the same programs and passes the same bytes."""

import ctypes
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether

from qnet.backends._libpcap import compile_filter

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SO_ATTACH_FILTER = 26
Instruction = tuple[int, int, int, int]
Program = list[Instruction]

LD, LDX, ST, STX, ALU, JMP, RET, MISC = range(8)
W, H, B = 0x00, 0x08, 0x10
IMM, ABS, IND, MEM, LEN, MSH = 0x00, 0x20, 0x40, 0x60, 0x80, 0xA0
K, X, A = 0x00, 0x08, 0x10

# What libpcap's code is made of, and what it may be near.
CODES = [
    *[LD | size | mode for size in (W, H, B) for mode in (ABS, IND)],
    *[LD | IMM, LD | MEM, LD | W | LEN, LDX | IMM, LDX | MEM, LDX | W | LEN, LDX | B | MSH, ST, STX],
    *[ALU | op | src for op in range(0, 0xB0, 0x10) for src in (K, X) if op != 0x80], ALU | 0x80,
    *[JMP | op | src for op in range(0x10, 0x50, 0x10) for src in (K, X)], JMP,
    *[RET | K, RET | A, MISC | 0x00, MISC | 0x80],
]  # fmt: skip


class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class Bpf:
    """csrc/bpf.c with the undefined behaviour sanitizer."""

    def __init__(self, so: Path) -> None:
        self.lib = ctypes.CDLL(str(so))
        self.lib.qn_bpf_run.restype = ctypes.c_uint32

    def check(self, program: Program) -> int:
        return int(self.lib.qn_bpf_check(packed(program), ctypes.c_uint(len(program))))

    def run(self, program: Program, frame: bytes, cuts: list[int]) -> int:
        """Over the frame in pieces, each in memory of its own size."""
        ends = [*sorted(c for c in cuts if c < len(frame)), len(frame)]
        pieces = [frame[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        keep = [ctypes.create_string_buffer(piece, max(1, len(piece))) for piece in pieces]
        iov = (Iovec * len(pieces))(*[(ctypes.addressof(k), len(p)) for k, p in zip(keep, pieces, strict=True)])
        return int(self.lib.qn_bpf_run(packed(program), iov, len(pieces), ctypes.c_uint32(len(frame))))


def packed(program: Program) -> bytes:
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


@pytest.fixture(scope="module")
def bpf(tmp_path_factory: pytest.TempPathFactory) -> Bpf:
    so = tmp_path_factory.mktemp("bpf") / "bpf.so"
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    subprocess.run([os.environ.get("CC", "cc").split()[-1], *flags, f"-I{CSRC}", str(CSRC / "bpf.c"), "-o", str(so)], check=True)
    return Bpf(so)


class Kernel:
    """The kernel's filter: what arrives at a unix datagram socket."""

    def __init__(self) -> None:
        self.here, self.there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.there.setblocking(False)

    def attach(self, program: Program) -> bool:
        code = ctypes.create_string_buffer(packed(program), max(1, 8 * len(program)))
        try:
            self.there.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code)))
        except OSError:
            return False
        return True

    def run(self, frame: bytes) -> int:
        """Bytes that pass."""
        self.here.send(frame)
        try:
            return len(self.there.recv(1 << 16))
        except BlockingIOError:
            return 0

    def close(self) -> None:
        self.here.close()
        self.there.close()


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    k = Kernel()
    yield k
    k.close()


# Loads at small and wild offsets; beyond 2^31 the kernel's have meanings of their own.
numbers = st.one_of(st.integers(0, 20), st.integers(0, 80), st.sampled_from([31, 32, 0xFF, 0x800, 0xFFFF, 0x7FFFFFFF]))
instructions = st.tuples(st.sampled_from(CODES), st.integers(0, 6), st.integers(0, 6), numbers)
# Most random programs jump out of themselves: padding behind them is where they land.
programs = st.builds(lambda body, tail: [*body, *[(RET, 0, 0, k) for k in tail]], st.lists(instructions, max_size=12),
                     st.lists(numbers, min_size=1, max_size=8))  # fmt: skip
frames = st.binary(min_size=1, max_size=90)


@given(program=programs)
@settings(max_examples=400)
def test_the_kernel_takes_the_same_programs(bpf: Bpf, kernel: Kernel, program: Program) -> None:
    assert (bpf.check(program) == -1) == kernel.attach(program)


def runnable(program: Program) -> bool:
    """Not with loads at X + k below 0, where the kernel keeps other things."""
    return not any(code & 7 == LD and code & 0xE0 == IND for code, *_ in program)


@given(program=programs, data=st.lists(frames, min_size=1, max_size=4), cuts=st.lists(st.integers(0, 89), max_size=5))
@settings(max_examples=400)
def test_the_kernel_passes_the_same_bytes(bpf: Bpf, kernel: Kernel, program: Program, data: list[bytes], cuts: list[int]) -> None:
    if bpf.check(program) != -1 or not runnable(program):
        return
    assert kernel.attach(program)
    for frame in data:
        assert min(bpf.run(program, frame, cuts), len(frame)) == kernel.run(frame)


@pytest.mark.parametrize(
    ("program", "wrong"),
    [
        ([], 0),
        ([(LD | IMM, 0, 0, 1)], 1),                                         # no end
        ([(0x9999, 0, 0, 0), (RET, 0, 0, 0)], 0),
        ([(JMP, 0, 0, 1), (RET, 0, 0, 0)], 0),                              # past the end
        ([(JMP, 0, 0, 0xFFFFFFFF), (RET, 0, 0, 0)], 0),                     # backwards, were it signed
        ([(JMP | 0x10, 0, 1, 0), (RET, 0, 0, 0)], 0),
        ([(ALU | 0x30, 0, 0, 0), (RET, 0, 0, 0)], 0),                       # a /= 0
        ([(ALU | 0x60, 0, 0, 32), (RET, 0, 0, 0)], 0),
        ([(ST, 0, 0, 16), (RET, 0, 0, 0)], 0),
        ([(LD | MEM, 0, 0, 3), (RET, 0, 0, 0)], 0),                         # nobody stored to it
        ([(JMP | 0x10, 0, 1, 0), (ST, 0, 0, 3), (LD | MEM, 0, 0, 3), (RET | A, 0, 0, 0)], 2),       # on one of two ways nobody did
        ([(LD | W | ABS, 0, 0, 0xFFFFF000), (RET | A, 0, 0, 0)], 0),        # SKF_AD_PROTOCOL
        ([(RET, 0, 0, 0)] * 4097, 4097),
    ],
)  # fmt: skip
def test_wrong_programs(bpf: Bpf, program: Program, wrong: int) -> None:
    assert bpf.check(program) == wrong


@pytest.mark.parametrize("mode", [ABS, IND])
@pytest.mark.parametrize(("size", "n"), [(W, 4), (H, 2), (B, 1)])
def test_a_load_may_lie_across_pieces_but_not_past_the_end(bpf: Bpf, mode: int, size: int, n: int) -> None:
    frame = bytes(range(1, 21))
    for at in range(25):
        program = [(LDX | IMM, 0, 0, at if mode == IND else 0), (LD | size | mode, 0, 0, at if mode == ABS else 0), (RET | A, 0, 0, 0)]
        assert bpf.check(program) == -1
        want = int.from_bytes(frame[at : at + n], "big") if at + n <= 20 else 0
        for cuts in ([], [at + 1], [at + 1, at + 2], [at, at, at + 3], list(range(20))):
            assert bpf.run(program, frame, cuts) == want


def test_an_index_may_count_backwards(bpf: Bpf) -> None:
    program = [(LDX | IMM, 0, 0, 0xFFFFFFFE), (LD | B | IND, 0, 0, 5), (RET | A, 0, 0, 0)]
    assert bpf.run(program, bytes(range(10)), []) == 3
    program[1] = (LD | B | IND, 0, 0, 1)
    assert bpf.run(program, bytes(range(10)), []) == 0


ETHER = Ether(src="52:54:00:00:00:01", dst="52:54:00:00:00:02")
FRAMES = {
    "http": ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=4000, dport=80),
    "http6": ETHER / IPv6(src="fd00::1", dst="fd00::2") / TCP(sport=80, dport=4000),
    "options": ETHER / IP(src="10.0.0.1", dst="10.0.0.9", options=b"\x01\x01\x01\x00") / TCP(dport=80),
    "dns": ETHER / IP(src="10.0.0.2", dst="10.0.0.1") / UDP(sport=53, dport=5353),
    "arp": ETHER / ARP(psrc="10.0.0.1", pdst="10.0.0.2"),
    "vlan": ETHER / Dot1Q(vlan=7) / IP(dst="10.0.0.2") / UDP(dport=53),
    "short": ETHER,
}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("tcp port 80", {"http", "http6", "options"}),
        ("host 10.0.0.2 and not arp", {"http", "dns"}),
        ("arp or udp", {"arp", "dns"}),
        ("vlan 7 and udp port 53", {"vlan"}),
        ("ip6", {"http6"}),
        ("ether host 52:54:00:00:00:01 and greater 50", {"http", "http6", "options"}),
        ("tcp[13] & 2 != 0", {"http", "options"}),
    ],
)
def test_filters_in_words(bpf: Bpf, text: str, match: set[str]) -> None:
    program = list(struct.iter_unpack("=HBBI", compile_filter(text)))
    assert bpf.check(program) == -1
    for cuts in ([], [13], [14, 23, 34]):
        assert {name for name, frame in FRAMES.items() if bpf.run(program, bytes(frame), cuts)} == match
