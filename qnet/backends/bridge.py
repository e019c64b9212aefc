"""netdev bridge: a tap on a Linux bridge, made by a helper that is allowed to (QEMU's qemu-bridge-helper, setuid and with a list)."""

import os
from dataclasses import dataclass

from qnet._client import NetClient
from qnet.backends._bridge_helper import BRIDGE, default_helper, run_helper
from qnet.backends._tap import TapClient
from qnet.options import STR, opt
from qnet.rooms import Network

__all__ = ["Options", "open"]


@dataclass(frozen=True, kw_only=True)
class Options:
    br: str = opt(STR, default=BRIDGE, help="the bridge that the new tap becomes a port of")
    helper: str | None = opt(STR, help="program that makes the tap; with a blank in it a shell command (default: qemu-bridge-helper)")


def open(net: Network, name: str, options: Options) -> list[NetClient]:
    helper = options.helper if options.helper is not None else default_helper()
    fd = run_helper(helper, options.br)
    try:
        client = TapClient(net.loop, name, "tap", fd)
    finally:
        os.close(fd)
    client.info_str = f"helper={helper},br={options.br}"
    return [client]
