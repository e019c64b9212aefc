"""netdev_add and netdev_del: the one door for backends (M6, M7, M9, M10, S56, S57)."""

import logging

import pytest

from qnet import _client
from qnet.errors import DeviceNotFound, DuplicateId, Error, OptionError


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("hubport,id=a,hubid=5", {}),
        ("type=hubport,hubid=5,id=a", {}),
        ('{"type": "hubport", "id": "a", "hubid": 5}', {}),
        ({"type": "hubport", "id": "a", "hubid": 5}, {}),
        ("hubport", {"id": "a", "hubid": 5}),
        (None, {"type": "hubport", "id": "a", "hubid": 5}),
    ],
)
def test_all_forms_make_the_same(net, spec, options):
    client = net.netdev_add(spec, **options)
    assert (client.name, client.model, net.hubs[5]) == ("a", "hubport", [client])
    assert net.client("a") is client


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("", "Parameter 'id' is missing"),
        ("user", "Parameter 'id' is missing"),
        ("user,id=", "Parameter 'id' expects an identifier"),
        ("user,id=1a", "Parameter 'id' expects an identifier"),
        ("user,id=a%", "Parameter 'id' expects an identifier"),
        ("id=a", "Parameter 'type' is missing"),
        ("bogus,id=a", "Parameter 'type' does not accept value 'bogus'"),
        (",id=a", "Parameter 'type' does not accept value ''"),
        ("null,,id=a,id=b", "Parameter 'type' does not accept value 'null,id=a'"),
        ("nic,id=a", "network backend 'nic' is not compiled into this binary"),
        ("none,id=a", "network backend 'none' is not compiled into this binary"),
        ("dump,id=a,file=/nowhere", "Parameter 'type' does not accept value 'dump'"),
        ("vmnet-host,id=a", "network backend 'vmnet-host' is not compiled into this binary"),
        ("hubport,id=a", "Parameter 'hubid' is missing"),
        ("hubport,id=a,hubid=0,netdev=zz", "netdev 'zz' not found"),
        ("hubport,id=a,hubid=0,netdev=a", "netdev 'a' not found"),
        ("hubport,id=a,hubid=x", "Parameter 'hubid' expects an int64 value"),
        ("null,id=a,foo=1", "Invalid parameter 'foo'"),
        ("null,id=a,=3", "Invalid parameter ''"),
        ("null,id=a,mac=1", "Invalid parameter 'mac'"),
        ("null,id=a,ipv6-net=fe80::/64", "Invalid parameter 'ipv6-prefix'"),
        ('{"type":"null"}', "Parameter 'id' is missing"),
        ('{"id":"a"}', "Parameter 'type' is missing"),
        ('{"type":"nope","id":"a"}', "Parameter 'type' does not accept value 'nope'"),
        ('{"type":"hubport","id":1,"hubid":1}', "Invalid parameter type for 'id', expected: string"),
        ('{"type":"hubport","id":null,"hubid":1}', "Invalid parameter type for 'id', expected: string"),
        ('{"type":5,"id":"a"}', "Invalid parameter type for 'type', expected: string"),
        ('{"type":"hubport","id":"1a","hubid":1}', "Parameter 'id' expects an identifier"),
        ('{"type":"null","id":"a","foo":1}', "Parameter 'foo' is unexpected"),
        ('{"type":"probe","id":"a","ipv6-net":"fe80::/64"}', "Parameter 'ipv6-net' is unexpected"),
        ("dotted,id=a,queues", "Expected '=' after parameter 'queues'"),
        ("dotted,id=a,foo=1", "Parameter 'foo' is unexpected"),
        ("probe,id=a,fail=on", "the probe refuses"),
        ("probe,id=a,queues=0", "Device 'probe' could not be initialized"),
    ],
)
def test_refusals_have_qemus_text_and_leave_nothing(net, refused, spec, text):
    clients = _client.live()
    assert refused(net.netdev_add, spec) == text
    assert _client.live() == clients
    net.netdev_add("null,id=a")


def test_hints_tell_what_to_do(net):
    net.netdev_add("null,id=free")
    for spec, hint in [
        ("nul,id=a", "did you mean 'null'?"),
        ("null,id=a,ofloads=on", "did you mean 'offloads'?"),
        ("hubport,id=a,hubid=0,netdev=zz", "free netdevs: free"),
        ("null,id=1", "identifiers consist of letters, digits"),
    ]:
        with pytest.raises(OptionError) as caught:
            net.netdev_add(spec)
        assert hint in str(caught.value)


def test_text_and_keywords_do_not_mix(net):
    with pytest.raises(OptionError, match=r"as text .* and as keywords"):
        net.netdev_add("null,id=a", offloads=False)


def test_none_as_keyword_is_not_given(net):
    assert net.netdev_add("hubport", id="a", hubid=0, netdev=None).peer is None


def test_s57_duplicate_ids(net, refused):
    net.netdev_add("null,id=a")
    assert refused(net.netdev_add, "null,id=a") == "Duplicate ID 'a' for netdev"
    assert refused(net.netdev_add, {"type": "null", "id": "a"}) == "Duplicate ID 'a'"
    assert refused(net.nic_add, "null,id=a") == "Duplicate ID 'a' for nic"
    assert refused(net.net_add, "null,id=a") == "Duplicate ID 'a' for net"
    net.net_add("null")
    assert refused(net.netdev_add, "null,id=hub0port0") == "Duplicate ID 'hub0port0' for netdev"
    with pytest.raises(DuplicateId):
        net.netdev_add("null,id=a")


def test_first_id_counts(net):
    assert net.netdev_add("null,id=a,id=b").name == "a"


def test_s56_netdev_del_frees_the_id(net):
    first = net.netdev_add("null,id=a")
    net.netdev_del("a")
    assert first.closed
    assert net.netdev_add("null,id=a") is not first


def test_s56_what_is_no_netdev(net, refused):
    net.device_add("card,id=card0")
    net.net_add("null,id=old")
    assert refused(net.netdev_del, "zz") == "Device 'zz' not found"
    assert refused(net.netdev_del, "card0") == "Device 'card0' not found"
    assert refused(net.netdev_del, "old") == "Device 'old' is not a netdev"
    assert refused(net.netdev_del, "hub0port0") == "Device 'hub0port0' is not a netdev"
    with pytest.raises(DeviceNotFound, match="device_del"):
        net.netdev_del("card0")


def test_a_hub_is_not_left_by_a_port_that_failed(net, refused):
    assert refused(net.netdev_add, "hubport,id=a,hubid=7,netdev=zz") == "netdev 'zz' not found"
    assert net.hubs == {}


def test_m9_dotted_keys(net):
    assert net.netdev_add("dotted,id=a,queues=2,queues=3").model == "probe"
    assert sum(client["name"] == "a" for client in net.stats()) == 3


@pytest.mark.parametrize(
    ("given", "prefix", "length"),
    [("fe80::/10", "fe80::", 10), ("fe80::", "fe80::", 64), ("fe80::/200", "fe80::", 200), ("a/1,ipv6-prefix=b", "a", 1)],
)
def test_m10_ipv6_net_is_sugar(net, monkeypatch, given, prefix, length):
    import sys

    seen = []
    module = sys.modules["probe_backend"]
    open_backend = module.open
    monkeypatch.setattr(module, "open", lambda net, name, options: seen.append(options) or open_backend(net, name, options))
    net.netdev_add(f"probe,id=a,ipv6-net={given}")
    assert (seen[0].ipv6_prefix, seen[0].ipv6_prefixlen) == (prefix, length)


@pytest.mark.parametrize("given", ["fe80::/x", "fe80::/", "fe80::/64/3", "fe80::/-1"])
def test_m10_bad_length(net, refused, given):
    assert refused(net.netdev_add, f"probe,id=a,ipv6-net={given}") == "Parameter 'ipv6-prefixlen' expects a number"


def test_short_booleans_are_deprecated(net, caplog):
    with caplog.at_level(logging.WARNING):
        assert net.netdev_add("null,id=a,nooffloads").name == "a"
    assert "short-form boolean option 'nooffloads' deprecated" in caplog.text


def test_m7_no_client_is_an_error(net):
    with pytest.raises(Error, match="Device 'probe' could not be initialized"):
        net.netdev_add("probe,id=a,queues=0")


def test_closed_network_takes_nothing(net):
    net.close()
    for call in (lambda: net.netdev_add("null,id=a"), lambda: net.device_add("card"), lambda: net.net_add("null"), net.announce_self):
        with pytest.raises(ValueError, match="the network is closed"):
            call()
