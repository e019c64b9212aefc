"""What a network looks like, in QEMU's words: `info network` (M12) and the warnings about what is not connected (M11)."""

from collections.abc import Callable, Collection, Mapping, Sequence

from qnet._client import NetClient
from qnet.backends._hub import Hub, HubPort

__all__ = ["client_line", "network_text", "warnings"]

FilterLines = Callable[[NetClient], Sequence[str]]


def client_type(client: NetClient) -> str:
    return "nic" if client.is_nic else client.model


def client_line(client: NetClient, index: int) -> str:
    """name: index=0,type=user,net=10.0.2.0,restrict=off"""
    return f"{client.name}: index={index},type={client_type(client)},{client.info_str}"


def network_text(
    hubs: Sequence[Hub], clients: Sequence[NetClient], index: Mapping[NetClient, int], filters: FilterLines
) -> str:
    """Hubs with what is plugged into their ports; then each client behind no hub that is a NIC or has no peer; a NIC's peer
    under it, and under each client its filters. Every line ends in a newline."""
    lines: list[str] = []

    def show(prefix: str, client: NetClient) -> None:
        lines.append(prefix + client_line(client, index.get(client, 0)))
        watching = filters(client)
        if watching:
            lines.extend(["filters:", *(f"  - {line}" for line in watching)])

    for hub in hubs:
        lines.append(f"hub {hub.hub_id}")
        for port in hub.ports:
            if port.peer is None:
                lines.append(f" \\ {port.name}")
            else:
                show(f" \\ {port.name}: ", port.peer)
    for client in clients:
        if isinstance(client, HubPort) or isinstance(client.peer, HubPort):
            continue
        if client.is_nic or client.peer is None:
            show("", client)
            if client.peer is not None:
                show(" \\ ", client.peer)
    return "".join(f"{line}\n" for line in lines)


def warnings(
    hubs: Sequence[Hub], clients: Sequence[NetClient], hosts: Collection[str], unmade: Sequence[tuple[str | None, str | None]]
) -> list[str]:
    """M11, in QEMU's order. hosts: the kinds of clients that reach the host's network. unmade: (name, model) of the NICs that were
    asked for and not made."""
    out: list[str] = []
    for hub in hubs:
        has_nic = has_host = False
        for port in hub.ports:
            if port.peer is None:
                out.append(f"hub port {port.name} has no peer")
                continue
            has_nic = has_nic or port.peer.is_nic
            has_host = has_host or port.peer.model in hosts
        if has_host and not has_nic:
            out.append(f"hub {hub.hub_id} with no nics")
        if has_nic and not has_host:
            out.append(f"hub {hub.hub_id} is not connected to host network")
    out.extend(f"{'nic' if client.is_nic else 'netdev'} {client.name} has no peer" for client in clients if client.peer is None)
    for name, model in unmade:
        out.append(
            f"requested NIC ({name or 'anonymous'}, model {model or 'unspecified'}) was not created (not supported by this machine?)"
        )
    return out
