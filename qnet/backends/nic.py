"""-net nic: the legacy request for a NIC (M4 to M6). It fills a slot of the NIC table; the VMM makes the NIC."""

from dataclasses import dataclass

from qnet._client import NetClient
from qnet.errors import OptionError
from qnet.mac import parse_mac
from qnet.options import STR, UINT32, opt
from qnet.rooms import Network

__all__ = ["Options", "open"]

MAX_VECTORS = 0x7FFFFFF


@dataclass(frozen=True, kw_only=True)
class Options:
    netdev: str | None = opt(STR, help="id of the netdev it is linked to; without one it is on hub 0")
    macaddr: str | None = opt(STR, help="Ethernet address")
    model: str | None = opt(STR, help="device model; the VMM's default when not given")
    addr: str | None = opt(STR, help="device address, for the VMM")
    vectors: int | None = opt(UINT32, help="number of MSI-X vectors, for the VMM")


def open(net: Network, name: str, options: Options) -> list[NetClient]:
    if options.netdev is not None:
        net.free_netdev(options.netdev)
    mac = parse_mac(options.macaddr) if options.macaddr is not None else None
    if mac is not None and mac[0] & 1:
        raise OptionError("NIC cannot have multicast MAC address (odd 1st byte)", "the second hex digit must be even")
    if options.vectors is not None and options.vectors > MAX_VECTORS:
        raise OptionError(f"invalid # of vectors: {options.vectors}", f"at most {MAX_VECTORS}")
    net.reserve_nic(name, options.model, mac, options.netdev, addr=options.addr, vectors=options.vectors)
    return []
