"""The tables: which kinds of backends, NICs and filters there are, and which module makes each. Help and docs come from them."""

import difflib
import importlib
from collections.abc import Mapping
from typing import NamedTuple, cast

from qnet.errors import OptionError
from qnet.options import help_lines
from qnet.rooms import BackendRoom, FilterRoom, ModelRoom

__all__ = ["FILTERS", "NET_CLIENT_INIT", "NIC_MODELS", "Backend", "Entry", "backend", "filter_help", "filter_room", "netdev_help",
           "nic_help", "nic_model", "nic_room"]  # fmt: skip


class Backend(NamedTuple):
    """A row of NET_CLIENT_INIT. The module is imported on first use."""

    module: str
    summary: str
    netdev: bool = True             # -netdev and -nic take it
    legacy: bool = True             # -net takes it
    keyval: bool = False            # its text has dotted keys (M9)
    host: bool = False              # counts as a connection to the host network (M11)

    @property
    def room(self) -> BackendRoom:
        return cast(BackendRoom, importlib.import_module(self.module))


class Entry(NamedTuple):
    """A row of the other tables."""

    module: str
    summary: str


NET_CLIENT_INIT: dict[str, Backend] = {
    "af-xdp": Backend("qnet.backends.af_xdp", "queues of an interface, by AF_XDP sockets"),
    "bridge": Backend("qnet.backends.bridge", "a tap on a Linux bridge, made by a setuid helper"),
    "dgram": Backend("qnet.backends.dgram", "frames as datagrams: UDP, unix, a multicast group", legacy=False, keyval=True, host=True),
    "dump": Backend("qnet.backends.dump", "writes what its hub carries to a capture file; filter-dump is better", netdev=False),
    "hubport": Backend("qnet.backends.hubport", "a port of a hub, which joins several clients", legacy=False),
    "l2tpv3": Backend("qnet.backends.l2tpv3", "frames in an L2TPv3 pseudowire, over UDP or IP"),
    "netmap": Backend("qnet.backends.netmap", "a netmap port: an interface or a port of a VALE switch"),
    "nic": Backend("qnet.backends.nic", "-net nic: asks the VMM for a NIC", netdev=False),
    "null": Backend("qnet.backends.null", "takes every packet and sends none"),
    "passt": Backend("qnet.backends.passt", "the host's network by passt, without privileges", legacy=False, host=True),
    "pipe": Backend("qnet.backends.pipe", "frames over pipes or a stream socket, each behind its length"),
    "py": Backend("qnet.backends.py", "a Python callable, or whoever asks: frames come in batches"),
    "socket": Backend("qnet.backends.socket", "frames over TCP, UDP or a multicast group; stream and dgram have more options", host=True),
    "socketpair": Backend("qnet.backends.socketpair", "frames are the messages of a socket in this process"),
    "stream": Backend("qnet.backends.stream", "frames over a TCP or unix connection", legacy=False, keyval=True, host=True),
    "tap": Backend("qnet.backends.tap", "a network interface of the host whose other end is here", host=True),
    "user": Backend("qnet.backends.user", "a network behind a NAT in this process (libslirp); needs no privileges", host=True),
    "vde": Backend("qnet.backends.vde", "a port of a VDE switch (libvdeplug)", host=True),
}

NIC_MODELS: dict[str, Entry] = {
    "e1000": Entry("qnet.models.e1000", "Intel Gigabit Ethernet (82540EM)"),
    "e1000-82544gc": Entry("qnet.models.e1000", "Intel Gigabit Ethernet (82544GC copper)"),
    "e1000-82545em": Entry("qnet.models.e1000", "Intel Gigabit Ethernet (82545EM copper)"),
}

NIC_ALIASES = {"e1000-82540em": "e1000"}

FILTERS: dict[str, Entry] = {
    "filter-dump": Entry("qnet.filters.dump", "writes what passes to a capture file: pcap or pcapng"),
}

# Kinds that QEMU knows and this table does not have: QEMU says the same of what its build left out.
QEMU_KINDS = (
    "none", "vhost-user", "vhost-vdpa",
    "vmnet-bridged", "vmnet-host", "vmnet-shared",
)  # fmt: skip


def _near(name: str, names: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(names)}"


def backend(kind: str, *, netdev: bool) -> Backend:
    """The row of `kind`, for -netdev and -nic or for -net; OptionError with QEMU's text (M6)."""
    row = NET_CLIENT_INIT.get(kind)
    usable = {name: row for name, row in NET_CLIENT_INIT.items() if (row.netdev if netdev else row.legacy)}
    if kind in usable:
        return usable[kind]
    if row is not None and not netdev:
        raise OptionError(f"network backend '{kind}' is only supported with -netdev/-nic", "use netdev_add")
    hint = "-net takes it: net_add()" if row is not None else _near(kind, usable)
    if kind == "nic" or kind in QEMU_KINDS:
        raise OptionError(f"network backend '{kind}' is not compiled into this binary", hint)
    raise OptionError(f"Parameter 'type' does not accept value '{kind}'", hint)


def nic_model(name: str, text: str = "'{}' is not a valid device model name") -> str:
    """The model's own name; OptionError with `text` when there is none."""
    name = NIC_ALIASES.get(name, name)
    if name not in NIC_MODELS:
        raise OptionError(text.format(name), _near(name, NIC_MODELS))
    return name


def nic_room(model: str) -> ModelRoom:
    """The module that makes NICs of `model`."""
    return cast(ModelRoom, importlib.import_module(NIC_MODELS[model].module))


def filter_room(kind: str) -> FilterRoom:
    """The module that makes filters of `kind`; OptionError with QEMU's text when there is none."""
    if kind not in FILTERS:
        raise OptionError(f"Parameter 'qom-type' does not accept value '{kind}'", _near(kind, FILTERS))
    return cast(FilterRoom, importlib.import_module(FILTERS[kind].module))


def _listing(title: str, rows: Mapping[str, str]) -> str:
    width = max((len(name) for name in rows), default=0)
    return "\n".join([title, *(f"{name:<{width}}  {summary}" for name, summary in rows.items())])


def netdev_help(kind: str | None = None) -> str:
    """The kinds of -netdev, one a line, or the options of one kind of -netdev or -net."""
    if kind is not None:
        row = backend(kind, netdev=kind not in NET_CLIENT_INIT or NET_CLIENT_INIT[kind].netdev)
        return "\n".join([f"{kind} options:", *help_lines(row.room.Options)])
    rows = {name: row.summary for name, row in sorted(NET_CLIENT_INIT.items()) if row.netdev}
    return _listing("Available netdev backend types:", rows)


def nic_help(model: str | None = None) -> str:
    """The NIC models, one a line, or the properties of one."""
    if model is not None:
        model = nic_model(model)
        return "\n".join([f"{model} options:", *help_lines(nic_room(model).Options)])
    return _listing("Supported NIC models:", {name: row.summary for name, row in sorted(NIC_MODELS.items())})


def filter_help(kind: str | None = None) -> str:
    """The kinds of filters, one a line, or the properties of one."""
    if kind is not None:
        return "\n".join([f"{kind} options:", *help_lines(filter_room(kind).Options)])
    return _listing("List of user creatable objects:", {name: row.summary for name, row in sorted(FILTERS.items())})
