"""QEMU's network layer as a Python package: net clients, hubs, netdevs, filters and NIC models."""

from qnet._client import NetClient
from qnet._host import GuestMemory, IrqLine
from qnet._loop import VirtualClock
from qnet.errors import DeviceNotFound, DuplicateId, Error, HostError, OptionError, Unavailable
from qnet.kinds import filter_help, netdev_help, nic_help
from qnet.net import Net, NicSlot

__all__ = [
    "DeviceNotFound",
    "DuplicateId",
    "Error",
    "GuestMemory",
    "HostError",
    "IrqLine",
    "Net",
    "NetClient",
    "NicSlot",
    "OptionError",
    "Unavailable",
    "VirtualClock",
    "filter_help",
    "netdev_help",
    "nic_help",
]
__version__ = "0.1.0"
