"""Options of the user netdev: defaults, inference, and QEMU's error texts, which a real QEMU is asked about as well."""

import ipaddress
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnet.backends import _libslirp, user
from qnet.backends._usernet import addresses, inferred_prefixlen, parse_guestfwd, parse_hostfwd
from qnet.errors import OptionError, Unavailable
from qnet.net import Net

LONG = "a" * 256
RULE = "Invalid host forwarding rule"
GUEST_RULE = "Invalid guest forwarding rule"
RANGE = "Invalid netmask provided (must be in range 4-32)"
RANGE6 = "Invalid IPv6 prefix provided (IPv6 prefix length must be between 0 and 126)"

# What stands behind "user,id=n0," -> QEMU's text
REFUSED = {
    "ipv4=off,net=10.0.0.0/24": "IPv4 disabled but netmask/host/dns provided",
    "ipv4=off,dns=10.0.0.1": "IPv4 disabled but netmask/host/dns provided",
    "ipv6=on,net=10.0.0.0/8": "IPv4 disabled but netmask/host/dns provided",
    "ipv6=off,ipv6-host=fec0::9": "IPv6 disabled but prefix/host6/dns6 provided",
    "ipv4=on,ipv6-host=fec0::9": "IPv6 disabled but prefix/host6/dns6 provided",
    "ipv4=off,ipv6=off": "IPv4 and IPv6 disabled",
    "net=10.0.2.0/33": RANGE,
    "net=10.0.2.0/3": RANGE,
    "net=10.0.2.0/": RANGE,
    "net=foo": "Failed to parse netmask",
    "net=10.0.2.0/24/1": "Failed to parse netmask (trailing chars)",
    "ip=1.2.3.0/24": "Failed to parse netmask (trailing chars)",
    "net=10.0.2.0/255.255.0.255": "DNS must be different from host",
    "host=foo": "Failed to parse host",
    "host=1.2.3.4": "Host doesn't belong to network",
    "dns=foo": "Failed to parse DNS",
    "dns=": "Failed to parse DNS",
    "restrict=on,dns=1.2.3.4": "DNS doesn't belong to network",
    "dns=10.0.2.2": "DNS must be different from host",
    "dhcpstart=foo": "Failed to parse DHCP start address",
    "dhcpstart=1.2.3.4": "DHCP doesn't belong to network",
    "dhcpstart=10.0.2.2": "DHCP must be different from host and DNS",
    "dhcpstart=10.0.2.3": "DHCP must be different from host and DNS",
    "ipv6-prefix=foo": "Failed to parse IPv6 prefix",
    "ipv6-net=foo": "Failed to parse IPv6 prefix",
    "ipv6-prefixlen=127": RANGE6,
    "ipv6-prefixlen=-1": RANGE6,
    "ipv6-net=fec0::/200": RANGE6,
    "ipv6-net=fec0::/foo": "Parameter 'ipv6-prefixlen' expects a number",
    "ipv6-net=fec0::/64/3": "Parameter 'ipv6-prefixlen' expects a number",
    "ipv6-host=foo": "Failed to parse IPv6 host",
    "ipv6-host=fec1::1": "IPv6 Host doesn't belong to network",
    "ipv6-dns=foo": "Failed to parse IPv6 DNS",
    "restrict=on,ipv6-dns=fec1::1": "IPv6 DNS doesn't belong to network",
    "domainname=": "'domainname' parameter cannot be empty",
    f"domainname={LONG}": "'domainname' parameter cannot exceed 255 bytes",
    f"hostname={LONG}": "'vhostname' parameter cannot exceed 255 bytes",
    f"tftp-server-name={LONG}": "'tftp-server-name' parameter cannot exceed 255 bytes",
    "smbserver=foo": "Failed to parse SMB address",
    "bogus=1": "Invalid parameter 'bogus'",
    "restrict=maybe": "Parameter 'restrict' expects 'on' or 'off'",
    "hostfwd=": f"{RULE} '' (No : separators)",
    "hostfwd=foo": f"{RULE} 'foo' (No : separators)",
    "hostfwd=sctp::1-:2": f"{RULE} 'sctp::1-:2' (Bad protocol name)",
    "hostfwd=tcp:": f"{RULE} 'tcp:' (Missing : separator)",
    "hostfwd=tcp:foo:22-:22": f"{RULE} 'tcp:foo:22-:22' (Bad host address)",
    "hostfwd=:2222-:22": f"{RULE} ':2222-:22' (Bad host address)",
    "hostfwd=tcp:localhost:1-:22": f"{RULE} 'tcp:localhost:1-:22' (Bad host address)",
    "hostfwd=tcp::foo-:22": f"{RULE} 'tcp::foo-:22' (Bad host port)",
    "hostfwd=tcp::70000-:22": f"{RULE} 'tcp::70000-:22' (Bad host port)",
    "hostfwd=tcp::22": f"{RULE} 'tcp::22' (Bad host port separator)",
    "hostfwd=tcp::2222:22": f"{RULE} 'tcp::2222:22' (Bad host port separator)",
    "hostfwd=tcp::2222-22": f"{RULE} 'tcp::2222-22' (Missing guest address)",
    "hostfwd=tcp::2222-foo:22": f"{RULE} 'tcp::2222-foo:22' (Bad guest address)",
    "hostfwd=tcp::-1-:22": f"{RULE} 'tcp::-1-:22' (Bad guest address)",
    "hostfwd=tcp::2222-:foo": f"{RULE} 'tcp::2222-:foo' (Bad guest port)",
    "hostfwd=tcp::2222-:0": f"{RULE} 'tcp::2222-:0' (Bad guest port)",
    "hostfwd=tcp::2222-:22x": f"{RULE} 'tcp::2222-:22x' (Bad guest port)",
    "hostfwd=tcp:1.2.3.4:2222-:22": "Could not set up host forwarding rule 'tcp:1.2.3.4:2222-:22'",
    "guestfwd=": f"{GUEST_RULE} ''",
    "guestfwd=foo": f"{GUEST_RULE} 'foo'",
    "guestfwd=tcp:10.0.2.100:80": f"{GUEST_RULE} 'tcp:10.0.2.100:80'",
    "guestfwd=udp:10.0.2.100:80-cmd:cat": f"{GUEST_RULE} 'udp:10.0.2.100:80-cmd:cat'",
    "guestfwd=tcp:10.0.2.100:0-cmd:cat": f"{GUEST_RULE} 'tcp:10.0.2.100:0-cmd:cat'",
    "guestfwd=tcp:10.0.2.100:http-cmd:cat": f"{GUEST_RULE} 'tcp:10.0.2.100:http-cmd:cat'",
    "guestfwd=tcp:foo:80-cmd:cat": f"{GUEST_RULE} 'tcp:foo:80-cmd:cat'",
    "guestfwd=tcp:10.0.2.2:80-cmd:cat": "Conflicting/invalid host:port in guest forwarding rule 'tcp:10.0.2.2:80-cmd:cat'",
    "guestfwd=tcp:1.2.3.4:80-cmd:cat": "Conflicting/invalid host:port in guest forwarding rule 'tcp:1.2.3.4:80-cmd:cat'",
}
# ... -> the network in its info string
TAKEN = {
    "restrict=off": "10.0.2.0",
    "net=1.2.3/24": "1.2.0.0",
    "net=10.0.2.0/4": "0.0.0.0",
    "net=10.0.2.9/24,host=10.0.2.5": "10.0.2.0",
    "net=10.0.2.0/255.255.255.0": "10.0.2.0",
    "net=127.0.0.0": "127.0.0.0",
    "host=10.0.2.255": "10.0.2.0",
    "dns=1.2.3.4": "10.0.2.0",
    "ipv6-prefixlen=126": "10.0.2.0",
    "ipv6-dns=fec1::1": "10.0.2.0",
    "ipv6-net=fec7::": "10.0.2.0",
    "ipv6=on,ipv4=off": "10.0.2.0",
    "ip=1.2.3.0,net=1.2.4.0/24": "1.2.4.0",
    "ip=1.2.3.0": "1.2.3.0",
    "tftp=/nonexistent": "10.0.2.0",
    "dnssearch=": "10.0.2.0",
    f"bootfile={'a' * 127}": "10.0.2.0",
    "guestfwd=tcp::80-cmd:cat": "10.0.2.0",
    "guestfwd=:10.0.2.100:80-cmd:cat": "10.0.2.0",
    "hostfwd=tcp::-:22": "10.0.2.0",
    "hostfwd=tcp:127.1:0-:22": "10.0.2.0",
}


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with Net() as net:
        yield net


@pytest.mark.parametrize(("options", "text"), REFUSED.items(), ids=[case[:40] for case in REFUSED])
def test_refused_with_qemus_text_and_a_hint(net: Net, options: str, text: str) -> None:
    with pytest.raises(OptionError) as e:
        net.netdev_add(f"user,id=n0,{options}")
    assert e.value.text == text
    assert e.value.hint
    assert net.info_network() == ""


@pytest.mark.parametrize(("options", "network"), TAKEN.items(), ids=[case[:40] for case in TAKEN])
def test_taken(net: Net, options: str, network: str) -> None:
    net.netdev_add(f"user,id=n0,{options}")
    try:
        assert net.info_network() == f"n0: index=0,type=user,net={network},restrict=off\n"
    finally:
        net.netdev_del("n0")


@pytest.mark.qemu
def test_qemu_says_the_same() -> None:
    lines = [f"netdev_add user,id=n{i},{options}" for i, options in enumerate([*REFUSED, *TAKEN])]
    run = subprocess.run(
        ["qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none", "-monitor", "stdio"],
        input="\n".join([*lines, "info network", "quit", ""]),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    said = [line for line in re.split(r"\(qemu\) |\n", run.stdout) if line.startswith("Error: ")]
    assert said == [f"Error: {text}" for text in REFUSED.values()]
    nets = re.findall(r"n(\d+): index=0,type=user,net=([\d.]+),restrict=off", run.stdout)
    assert nets == [(str(len(REFUSED) + i), network) for i, network in enumerate(TAKEN.values())]


# ------------------------------------------------------------------------------------------------------------------- inference


@pytest.mark.parametrize(
    ("network", "length"),
    [("10.0.0.0", 8), ("127.0.0.0", 8), ("128.1.0.0", 16), ("172.16.0.0", 12), ("172.31.0.0", 12), ("172.32.0.0", 16), ("191.0.0.0", 16),
     ("192.168.5.0", 16), ("198.18.0.0", 15), ("198.19.0.0", 15), ("192.0.2.0", 24), ("198.20.0.0", 24), ("223.1.1.0", 24),
     ("224.0.0.0", 28), ("240.0.0.0", 28)],
)  # fmt: skip
def test_mask_inferred_from_the_network(network: str, length: int) -> None:
    """B5: class C is 192.0.0.0 to 223.255.255.255, and gets /24."""
    assert inferred_prefixlen(int(ipaddress.IPv4Address(network))) == length


def test_defaults_follow_from_net_and_mask() -> None:
    a = addresses(user.Options(net="10.1.0.0/16"))
    assert [str(x) for x in (a.host, a.dns, a.dhcp)] == ["10.1.2.2", "10.1.2.3", "10.1.2.15"]
    a = addresses(user.Options(net="192.0.2.0"))
    assert [str(x) for x in (a.mask, a.host, a.dns, a.dhcp)] == ["255.255.255.0", "192.0.2.2", "192.0.2.3", "192.0.2.15"]
    a = addresses(user.Options())
    assert [str(x) for x in (a.prefix, a.prefixlen, a.host6, a.dns6)] == ["fec0::", "64", "fec0::2", "fec0::3"]
    assert (a.in_enabled, a.in6_enabled) == (True, True)
    assert addresses(user.Options(ipv4=True)).in6_enabled is False
    assert addresses(user.Options(ipv6=True)).in_enabled is False
    assert addresses(user.Options(ipv6=False)).in_enabled is True


TEXTS = st.one_of(st.text("0123456789.:/-[]abcdefx", max_size=30), st.text(max_size=10))


ADDRESS_OPTIONS = ("net", "host", "dns", "dhcpstart", "ipv6_prefix", "ipv6_host", "ipv6_dns")


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(ADDRESS_OPTIONS, TEXTS)), st.booleans())
def test_any_address_text_is_refused_or_consistent(options: dict[str, Any], restrict: bool) -> None:
    try:
        a = addresses(user.Options(restrict=restrict, **options))
    except OptionError:
        return
    net, mask = int(a.net), int(a.mask)
    assert int(a.host) & mask == int(a.dhcp) & mask == net
    assert len({a.host, a.dns, a.dhcp}) == 3
    assert a.host6 in ipaddress.IPv6Network((a.prefix, a.prefixlen), strict=False)


@given(TEXTS)
def test_any_rule_is_refused_or_understood(text: str) -> None:
    for parse in (parse_hostfwd, parse_guestfwd, lambda rule: parse_hostfwd(rule, with_guest=False)):
        try:
            parse(text)
        except OptionError:
            continue


ADDRESSES = st.one_of(st.ip_addresses(), st.none())


@given(st.sampled_from(["tcp", "udp", ""]), ADDRESSES, st.integers(0, 65535), ADDRESSES, st.integers(1, 65535))
def test_hostfwd_rules_as_socket_addresses(protocol: str, host: Any, port: int, to: Any, to_port: int) -> None:
    def spell(address: Any) -> str:
        return "" if address is None else f"[{address}]" if address.version == 6 else str(address)

    if (to is not None and "%" in str(to)) or (host is not None and "%" in str(host)):
        return
    rule = parse_hostfwd(f"{protocol}:{spell(host)}:{port}-{spell(to)}:{to_port}")
    host = host or ipaddress.IPv4Address("127.0.0.1")
    assert host.packed in rule.host
    assert rule.host[2:4] == port.to_bytes(2, "big")
    assert rule.guest[2:4] == to_port.to_bytes(2, "big")
    assert len(rule.host) == (28 if host.version == 6 else 16)
    assert rule.flags == (protocol == "udp") + 2 * (host.version == 6)
    assert parse_hostfwd(f"{protocol}:{spell(host)}:{port}", with_guest=False).host == rule.host


def test_text_that_the_library_would_cut_or_refuse() -> None:
    with Net() as net:
        for options, text in (
            ({"bootfile": "a" * 128}, "'bootfile' parameter cannot exceed 127 bytes"),
            ({"tftp": "a\0b"}, "Parameter 'tftp' contains a NUL character"),
            ({"dnssearch": ["a\0b"]}, "Parameter 'dnssearch' contains a NUL character"),
            ({"hostfwd": [f"unix:/{'a' * 107}-:22"]}, f"{RULE} 'unix:/{'a' * 107}-:22' (Bad host path)"),
            ({"hostfwd": ["unix:-:22"]}, f"{RULE} 'unix:-:22' (Bad host path)"),
        ):
            with pytest.raises(OptionError) as e:
                net.netdev_add("user", id="n0", **options)
            assert e.value.text == text


def test_bad_search_domains_are_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with Net() as net:
        net.netdev_add("user", id="n0", dnssearch=["good.example", "a" * 70, ""])
    assert re.findall(r"failed to parse domain name '(\w*)'", caplog.text) == ["a" * 70, ""]


# --------------------------------------------------------------------------------------------------------------------- library


def test_a_missing_library_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_libslirp, "SONAME", "libslirp-is-not-there.so.0")
    monkeypatch.setattr("qnet.backends.user.library", _libslirp.library.__wrapped__)
    with Net() as net, pytest.raises(Unavailable) as e:
        net.netdev_add("user,id=n0")
    assert e.value.text == "network backend 'user' is not compiled into this binary"
    assert "apt install libslirp0" in e.value.hint


def test_a_library_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_libslirp, "SONAME", "libc.so.6")
    with pytest.raises(Unavailable, match=re.escape("libslirp 4.7 or newer")):
        _libslirp.library.__wrapped__()


def test_the_library_is_found_and_new_enough() -> None:
    assert tuple(map(int, _libslirp.library().version.split(".")[:2])) >= (4, 7)
    assert set(_libslirp.library().functions) >= {"slirp_new", "slirp_input"}
    assert os.path.basename(_libslirp.SONAME) == "libslirp.so.0"
