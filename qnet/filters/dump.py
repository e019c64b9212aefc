"""filter-dump: what passes a netdev's link goes to a capture file, as pcap the way QEMU writes it, or as pcapng. See docs/capture.md."""

import errno
from dataclasses import dataclass

from qnet._client import NetClient
from qnet.errors import HostError, OptionError
from qnet.filters._filters import DumpFilter
from qnet.options import BOOL, SIZE, STR, UINT32, Choice, FilterOptions, opt
from qnet.rooms import Network

__all__ = ["Options", "open"]

MAX_ROTATE_COUNT = 1000
OPEN_HINTS = {
    errno.ENXIO: "nobody reads the FIFO yet: start its reader first",
    errno.EINVAL: "rotate-size= needs a regular file",
}


@dataclass(frozen=True, kw_only=True)
class Options(FilterOptions):
    file: str = opt(STR, required=True, help="capture file; created or truncated")
    maxlen: int = opt(UINT32, default=65536, help="bytes kept of a frame")
    format: str | None = opt(Choice("pcap", "pcapng"), help="file format; pcapng when the name ends in .pcapng, else pcap", extra=True)
    rotate_size: int = opt(SIZE, default=0, help="begin a new file before one grows beyond this; 0: never", extra=True)
    rotate_count: int = opt(UINT32, default=8, help="finished files that are kept, as FILE.1 (the newest), FILE.2 ...", extra=True)
    drops: bool = opt(BOOL, default=True, help="pcapng: dropped frames too, with the reason as comment", extra=True)


def open(net: Network, name: str, options: Options, client: NetClient) -> DumpFilter:
    if options.maxlen == 0:
        raise OptionError("Property 'filter-dump.maxlen' doesn't take value '0'", "a frame has at most 69632 bytes")
    if not 1 <= options.rotate_count <= MAX_ROTATE_COUNT:
        raise OptionError(f"Property 'filter-dump.rotate-count' doesn't take value '{options.rotate_count}'", f"1 to {MAX_ROTATE_COUNT}")
    try:
        return DumpFilter(
            client,
            options.file,
            format=options.format or "",
            maxlen=options.maxlen,
            rotate_size=options.rotate_size,
            rotate_count=options.rotate_count,
            drops=options.drops,
        )
    except HostError as e:
        raise HostError(e.errno or 0, f"net dump: can't open {options.file}", OPEN_HINTS.get(e.errno or 0, "")) from None
