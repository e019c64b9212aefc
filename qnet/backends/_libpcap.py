"""libpcap, looked up when the first filter in words is asked for: it turns them into a classic BPF program. No packet passes through it."""

import functools
import threading
from typing import Any

import cffi  # type: ignore[import-untyped]

from qnet.errors import OptionError, Unavailable

__all__ = ["compile_filter"]

CDEF = """
struct bpf_insn { uint16_t code; uint8_t jt, jf; uint32_t k; };
struct bpf_program { unsigned bf_len; struct bpf_insn *bf_insns; };
typedef struct pcap pcap_t;
pcap_t *pcap_open_dead(int linktype, int snaplen);
int pcap_compile(pcap_t *, struct bpf_program *, const char *text, int optimize, uint32_t netmask);
char *pcap_geterr(pcap_t *);
void pcap_freecode(struct bpf_program *);
void pcap_close(pcap_t *);
"""
SONAME = "libpcap.so.0.8"
DLT_EN10MB = 1
NETMASK_UNKNOWN = 0xFFFFFFFF

ffi = cffi.FFI()
ffi.cdef(CDEF)
lock = threading.Lock()                     # older libpcaps compile one text at a time


@functools.cache
def library() -> Any:
    """Open libpcap once. Unavailable, with the package's name, when it is missing."""
    try:
        return ffi.dlopen(SONAME)
    except OSError as e:
        raise Unavailable("a filter in words needs libpcap", f"apt install libpcap0.8, or give the program itself ({e})") from None


def compile_filter(text: str) -> bytes:
    """A filter as tcpdump takes it ("tcp port 80"), for Ethernet frames, as struct sock_filter after struct sock_filter.

    OptionError with libpcap's words when it makes no sense, Unavailable without libpcap.
    """
    lib = library()
    program = ffi.new("struct bpf_program *")
    with lock:
        handle = lib.pcap_open_dead(DLT_EN10MB, 0x40000)
        if handle == ffi.NULL:
            raise MemoryError
        try:
            if lib.pcap_compile(handle, program, text.encode(), 1, NETMASK_UNKNOWN) < 0:
                said = ffi.string(lib.pcap_geterr(handle)).decode(errors="replace")
                raise OptionError(f"Parameter 'filter' expects a filter expression: {said}", "pcap-filter(7) describes them: tcp port 80")
        finally:
            lib.pcap_close(handle)
    try:
        return bytes(ffi.buffer(program.bf_insns, program.bf_len * ffi.sizeof("struct bpf_insn")))
    finally:
        lib.pcap_freecode(program)
