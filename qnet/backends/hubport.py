"""hubport: a port of a hub (H1 to H7). With netdev= another backend is plugged into it (H5)."""

from dataclasses import dataclass

from qnet._client import NetClient
from qnet.options import INT32, STR, opt
from qnet.rooms import Network

__all__ = ["Options", "open"]


@dataclass(frozen=True, kw_only=True)
class Options:
    hubid: int = opt(INT32, required=True, help="number of the hub")
    netdev: str | None = opt(STR, help="id of a netdev to plug into the port")


def open(net: Network, name: str, options: Options) -> list[NetClient]:
    member = net.free_netdev(options.netdev) if options.netdev is not None else None
    port = net.hub_port(options.hubid, name)
    if member is not None:
        port.pair(member)
    return [port]
