"""What a guest meets first: ARP, DHCP, ping, TFTP, router advertisements, and the ways to run the network."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptPrefixInfo,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from qnet.backends import user

MAC = "52:54:00:12:34:56"
MODES = ["pump", "thread", "manual"]


@pytest.mark.parametrize("mode", MODES)
def test_arp_dhcp_and_ping_in_every_mode(guest: Callable[..., Any], mode: str) -> None:
    g = guest(mode)
    assert g.arp("10.0.2.2") == "52:55:0a:00:02:02"
    assert g.arp("10.0.2.3") == "52:55:0a:00:02:03"
    offer = g.dhcp()
    assert offer["message-type"] == 2
    assert offer["yiaddr"] == "10.0.2.15"
    assert offer["subnet_mask"] == "255.255.255.0"
    assert offer["router"] == offer["server_id"] == offer["siaddr"] == "10.0.2.2"
    assert offer["name_server"] == "10.0.2.3"
    ack = g.dhcp("request", requested_addr="10.0.2.15", server_id="10.0.2.2")
    assert ack["message-type"] == 5
    assert bytes(g.ping("10.0.2.2", b"ping" * 16)[ICMP].payload)[:64] == b"ping" * 16


def test_frames_reach_the_guest_padded(guest: Callable[..., Any]) -> None:
    """S28: slirp's frames are padded for a NIC that wants it, not for one that does not."""
    g = guest()
    g.send(g.to("10.0.2.2") / ICMP(id=1))
    assert len(g.wait(lambda p: ICMP in p)) == 60
    g.port.min_frame = 0
    g.send(g.to("10.0.2.2") / ICMP(id=1))
    assert len(g.wait(lambda p: ICMP in p)) == 42


def test_dhcp_tells_what_the_options_say(guest: Callable[..., Any]) -> None:
    g = guest(
        net="192.168.7.0/24", host="192.168.7.1", dns="192.168.7.9", dhcpstart="192.168.7.50", hostname="box", domainname="example.org",
        dnssearch=["a.example", "b.example"], bootfile="boot.ipxe", tftp="/nowhere", tftp_server_name="tftp.example",
    )
    offer = g.dhcp(param_req_list=[12, 15, 66, 67, 119])
    assert offer["yiaddr"] == "192.168.7.50"
    assert offer["router"] == "192.168.7.1"
    assert offer["name_server"] == "192.168.7.9"
    assert offer["hostname"] == b"box"
    assert offer["domain"] == b"example.org"
    assert offer["tftp_server_name"] == b"tftp.example"
    assert offer["file"].rstrip(b"\0") == b"boot.ipxe"
    search = offer[119] if 119 in offer else offer["domain_search"] if "domain_search" in offer else offer["Domain-Search"]
    assert b"example" in (search if isinstance(search, bytes) else repr(search).encode())
    assert g.client.info_str == "net=192.168.7.0,restrict=off"


def test_two_guests_get_two_leases(guest: Callable[..., Any]) -> None:
    g = guest()
    assert g.dhcp()["yiaddr"] == "10.0.2.15"
    g.dhcp("request", requested_addr="10.0.2.15")
    other = "52:54:00:12:34:57"
    from scapy.layers.dhcp import BOOTP, DHCP

    g.send(
        Ether(src=other, dst="ff:ff:ff:ff:ff:ff") / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67)
        / BOOTP(chaddr=bytes.fromhex(other.replace(":", "")), xid=8) / DHCP(options=[("message-type", "discover"), "end"])
    )
    assert g.wait(lambda p: BOOTP in p and p[BOOTP].xid == 8)[BOOTP].yiaddr == "10.0.2.16"


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 40000])
def test_tftp_reads_a_file(guest: Callable[..., Any], tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "boot.img").write_bytes(data)
    g = guest(tftp=str(tmp_path))
    assert g.tftp("boot.img") == data
    assert g.tftp("/boot.img", sport=4002) == data


def test_tftp_reads_nothing_else(guest: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "public").mkdir()
    g = guest(tftp=str(tmp_path / "public"))
    for sport, name in enumerate(("../secret", "/../secret", "..\\secret", "none"), 5000):
        with pytest.raises(FileNotFoundError):
            g.tftp(name, sport=sport)


def advertisement(p: Packet) -> bool:
    return ICMPv6ND_RA in p


def test_ipv6_router_and_neighbours(guest: Callable[..., Any]) -> None:
    g = guest()
    g.send(Ether(src=MAC, dst="33:33:00:00:00:02") / IPv6(src="fe80::15", dst="ff02::2", hlim=255) / ICMPv6ND_RS())
    ra = g.wait(advertisement)
    assert ra[ICMPv6NDOptPrefixInfo].prefix == "fec0::"
    assert ra[ICMPv6NDOptPrefixInfo].prefixlen == 64
    assert ra[IPv6].hlim == 255
    g.send(Ether(src=MAC, dst="33:33:ff:00:00:02") / IPv6(src=g.ip6, dst="ff02::1:ff00:2", hlim=255) / ICMPv6ND_NS(tgt="fec0::2"))
    na = g.wait(lambda p: ICMPv6ND_NA in p and p[ICMPv6ND_NA].tgt == "fec0::2")
    assert na[ICMPv6NDOptDstLLAddr].lladdr == na.src
    g.send(Ether(src=MAC, dst=na.src) / IPv6(src=g.ip6, dst="fec0::2") / ICMPv6EchoRequest(id=3, data=b"x" * 40))
    assert g.wait(lambda p: ICMPv6EchoReply in p)[ICMPv6EchoReply].data == b"x" * 40


def test_ipv6_addresses_follow_the_options(guest: Callable[..., Any]) -> None:
    g = guest(ipv6_prefix="fd12:3456::", ipv6_prefixlen=48, ipv6_host="fd12:3456::99")
    assert str(g.client.addresses.dns6) == "fd12:3456::3"
    g.ip6 = "fd12:3456::15"
    g.send(Ether(src=MAC, dst="33:33:00:00:00:02") / IPv6(src="fe80::15", dst="ff02::2", hlim=255) / ICMPv6ND_RS())
    prefix = g.wait(advertisement)[ICMPv6NDOptPrefixInfo]
    assert (prefix.prefix, prefix.prefixlen) == ("fd12:3456::", 48)
    g.send(Ether(src=MAC, dst="33:33:ff:00:00:99") / IPv6(src=g.ip6, dst="ff02::1:ff00:99", hlim=255) / ICMPv6ND_NS(tgt="fd12:3456::99"))
    g.wait(lambda p: ICMPv6ND_NA in p)


def test_a_family_that_is_off_is_silent(guest: Callable[..., Any]) -> None:
    g = guest(ipv4=True)
    g.send(Ether(src=MAC, dst="33:33:00:00:00:02") / IPv6(src="fe80::15", dst="ff02::2", hlim=255) / ICMPv6ND_RS())
    g.nothing(advertisement, 0.1)
    g.arp("10.0.2.2")
    g = guest(ipv6=True)
    g.send(Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=MAC, psrc="10.0.2.15", pdst="10.0.2.2"))
    g.nothing(lambda p: ARP in p, 0.1)


def test_router_advertisements_follow_the_networks_clock(guest: Callable[..., Any]) -> None:
    """libslirp's own timer: hours of virtual time bring many unsolicited advertisements, and none comes before its time."""
    g = guest("manual")
    g.net.run_until(1_000_000_000)
    g.take()
    early = len([p for p in g.inbox if advertisement(p)])
    g.net.run_until(3600 * 1_000_000_000)
    g.take()
    later = len([p for p in g.inbox if advertisement(p)]) - early
    assert early == 0
    assert 3600 // 600 <= later <= 3600 // 200 + 1           # RFC 4861 6.2.1: between 200 and 600 s apart


def test_the_same_run_gives_the_same_bytes(guest: Callable[..., Any]) -> None:
    def run() -> list[bytes]:
        g = guest("manual")
        frames = []
        g.send(Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=MAC, psrc=g.ip, pdst="10.0.2.2"))
        g.net.run_until(5_000_000)
        frames += g.port.recv()
        g.send(Ether(src=MAC, dst="52:55:0a:00:02:02") / IP(src=g.ip, dst="10.0.2.2") / ICMP(id=1))
        g.net.run_until(10_000_000)
        return [*frames, *g.port.recv()]

    assert run() == run()


def test_clients_are_counted_and_named(guest: Callable[..., Any]) -> None:
    g = guest()
    g.arp("10.0.2.2")
    stats = g.client.stats()
    assert (stats["rx_packets"], stats["tx_packets"]) == (1, 1)
    assert (stats["rx_bytes"], stats["tx_bytes"]) == (42, 64)
    assert isinstance(g.client, user.UserClient)
    assert g.client.model == "user"
