"""null: takes every packet and sends none. For tests and benches, and to give a NIC a link."""

from dataclasses import dataclass

from qnet._client import NetClient, NullClient
from qnet.options import BOOL, opt
from qnet.rooms import Network

__all__ = ["Options", "open"]


@dataclass(frozen=True, kw_only=True)
class Options:
    offloads: bool = opt(BOOL, default=True, help="off: packets come with their checksums filled in and segmented")


def open(net: Network, name: str, options: Options) -> list[NetClient]:
    return [NullClient(net.loop, name, "null", options.offloads)]
