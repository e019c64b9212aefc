"""dump: the legacy capture client, `-net dump,file=,len=`. On a hub it writes what every member sends; filter-dump is its successor."""

from dataclasses import dataclass

from qnet._client import NetClient
from qnet.backends._dump import DumpClient
from qnet.errors import HostError, OptionError
from qnet.options import SIZE, STR, opt
from qnet.rooms import Network

__all__ = ["Options", "open"]


@dataclass(frozen=True, kw_only=True)
class Options:
    file: str = opt(STR, default="qemu-vlan0.pcap", help="capture file; created or truncated; pcapng when it ends in .pcapng")
    len: int = opt(SIZE, default=65536, help="bytes kept of a frame")


def open(net: Network, name: str, options: Options) -> list[NetClient]:
    if not 0 < options.len < 1 << 32:
        raise OptionError(f"Parameter 'len' doesn't take value '{options.len}'", "a frame has at most 69632 bytes")
    try:
        return [DumpClient(net.loop, name, options.file, maxlen=options.len)]
    except HostError as e:
        raise HostError(e.errno or 0, f"net dump: can't open {options.file}") from None
