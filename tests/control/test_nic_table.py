"""-nic, -net and the NIC table (M1, M4 to M6, M8)."""

import pytest

from qnet.net import MAX_NICS


def rows(net):
    return [(slot.name, slot.model, slot.mac[5], slot.netdev) for slot in net.nic_table]


def test_m8_nic_makes_a_backend_and_a_slot(net):
    slot = net.nic_add("null,model=card,mac=52:54:00:12:34:58,id=foo")
    assert rows(net) == [("foo", "card", 0x58, "foo")]
    assert net.client("foo").model == "null"
    nic = net.nic_init(slot)
    assert (nic.name, nic.mac[5], nic.clients[0].peer) == ("card.0", 0x58, net.client("foo"))


def test_m8_ids_are_made_up(net):
    slots = [net.nic_add("null"), net.nic_add("hubport,hubid=2")]
    assert [slot.netdev for slot in slots] == ["#net000", "#net001"]
    assert [slot.name for slot in slots] == [None, None]
    net.netdev_del("#net000")


def test_m8_default_type_is_user(net, refused, monkeypatch):
    from qnet import kinds

    monkeypatch.setitem(kinds.NET_CLIENT_INIT, "user", kinds.NET_CLIENT_INIT["probe"])
    assert net.client(net.nic_add("model=card").netdev).model == "probe"
    assert net.client(net.nic_add().netdev).model == "probe"


def test_m8_none(net):
    assert net.nic_add("none") is None
    assert net.nic_add("none,foo=1") is None
    assert net.net_add("none") is None
    assert net.stats() == []


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("nope", "Parameter 'type' does not accept value 'nope'"),
        ("nic,model=card", "network backend 'nic' is not compiled into this binary"),
        ("null,foo=1", "Invalid parameter 'foo'"),
        ("null,netdev=x", "Invalid parameter 'netdev'"),
        ("null,macaddr=zz", "Invalid parameter 'macaddr'"),
        ("null,addr=5", "Invalid parameter 'addr'"),
        ("null,mac=zz", "invalid syntax for ethernet address"),
        ("null,mac=01:00:00:00:00:00", "NIC cannot have multicast MAC address"),
        ("null,mac=FF:ff:ff:ff:ff:ff", "NIC cannot have multicast MAC address"),
        ("null,id=1a", "Parameter 'id' expects an identifier"),
        ("null,model=nope", "Unsupported NIC model: nope"),
        ("hubport", "Parameter 'hubid' is missing"),
        ("hubport,hubid=0,mac=zz", "invalid syntax for ethernet address"),
        ("probe,fail=on", "the probe refuses"),
    ],
)
def test_nic_refuses(net, refused, spec, text):
    assert refused(net.nic_add, spec) == text
    net.nic_add("null")
    assert rows(net)[0][2] == 0x56


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("", "Parameter 'type' is missing"),
        ("nope", "Parameter 'type' does not accept value 'nope'"),
        ("hubport,hubid=0", "network backend 'hubport' is only supported with -netdev/-nic"),
        ("dotted", "network backend 'dotted' is only supported with -netdev/-nic"),
        ("vmnet-host", "network backend 'vmnet-host' is not compiled into this binary"),
        ("none,foo=1", "Invalid parameter 'foo'"),
        ("none,id=3", "Parameter 'id' expects an identifier"),
        ("null,id=3", "Parameter 'id' expects an identifier"),
        ("null,foo=1", "Invalid parameter 'foo'"),
        ("nic,name=bar", "Invalid parameter 'name'"),
        ("nic,netdev=zz", "netdev 'zz' not found"),
        ("nic,macaddr=zz", "invalid syntax for ethernet address"),
        ("nic,macaddr=01:00:00:00:00:00", "NIC cannot have multicast MAC address (odd 1st byte)"),
        ("nic,vectors=0x8000000", "invalid # of vectors: 134217728"),
        ("nic,vectors=-1", "Parameter 'vectors' expects a uint64 value"),
        ("nic,model=nope", "Unsupported NIC model: nope"),
        ("probe,fail=on", "the probe refuses"),
        ("probe,queues=2", "Multiqueue probe cannot be used with hubs"),
    ],
)
def test_net_refuses(net, refused, spec, text):
    assert refused(net.net_add, spec) == text
    net.net_add("null")
    assert [port.name for port in net.hubs[0]] == ["hub0port0"]


def test_m6_net_connects_to_hub_0(net):
    assert net.net_add("null,id=a") is None
    slot = net.net_add("nic,model=card")
    net.net_add("probe")
    assert [(port.name, port.peer and port.peer.name) for port in net.hubs[0]] == [
        ("hub0port2", "#net001"), ("hub0port1", None), ("hub0port0", "a"),
    ]  # fmt: skip
    nic = net.nic_init(slot)
    assert net.hubs[0][1].peer is nic.clients[0]


def test_m6_net_nic_with_a_netdev_is_on_no_hub(net):
    netdev = net.netdev_add("null,id=u")
    slot = net.net_add("nic,netdev=u,id=k,model=card,addr=05.0,vectors=4")
    assert net.hubs == {}
    assert (slot.name, slot.addr, slot.vectors) == ("k", "05.0", 4)
    assert net.nic_init(slot).clients[0].peer is netdev


def test_m6_port_names_count_all_ports_of_the_hub(net):
    net.netdev_add("hubport,id=h,hubid=0")
    net.net_add("null")
    assert [port.name for port in net.hubs[0]] == ["hub0port1", "h"]
    net.netdev_add("hubport,id=hub0port3,hubid=0")
    net.net_add("null")
    assert [port.name for port in net.hubs[0]] == ["hub0port4", "hub0port3", "hub0port1", "h"]


def test_m5_the_table_is_full(net, refused):
    for _ in range(MAX_NICS):
        net.nic_add("null")
    assert refused(net.nic_add, "null") == "no more on-board/default NIC slots available"
    assert refused(net.net_add, "nic") == "too many NICs"
    net.device_add("card")


def test_m5_a_deleted_nic_gives_its_slot_back(net):
    slot = net.nic_add("null,model=card")
    net.nic_init(slot)
    net.device_del("card.0")
    assert net.nic_table == ()
    assert net.nic_add("null").mac[5] == 0x56
    with pytest.raises(ValueError, match="given back"):
        net.nic_init(slot) if slot.nic is None else net.nic_init(type(slot)(None, None, slot.mac, None))


def test_nic_init_makes_it_once(net):
    slot = net.nic_add("null")
    nic = net.nic_init(slot, model="card")
    assert (nic.model, slot.nic) == ("card", nic)
    with pytest.raises(ValueError, match="made already"):
        net.nic_init(slot)


def test_nic_init_failures_leave_the_slot(net, refused):
    slot = net.nic_add("null,id=a")
    assert refused(net.nic_init, slot, model="nope") == "Unsupported NIC model: nope"
    net.netdev_del("a")
    assert refused(net.nic_init, slot, model="card") == "Property 'card.netdev' can't find value 'a'"
    net.netdev_add("null,id=a")
    net.nic_init(slot, model="card")


def test_m1_addresses_in_order_of_request(net):
    net.nic_add("null")
    net.nic_add("null,mac=52:54:00:12:34:58")
    net.nic_add("null")
    net.nic_add("null")
    net.nic_add("null,mac=12")
    assert [slot.mac[5] for slot in net.nic_table] == [0x56, 0x58, 0x57, 0x59, 12]
    assert net.device_add("card").mac[5] == 0x5A
