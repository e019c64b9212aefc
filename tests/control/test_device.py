"""device_add and device_del: NICs, their names, addresses and peers (S2, S6, S54, M1, M2)."""

import gc

import pytest

from qnet._host import GuestMemory, IrqLine
from qnet.errors import DeviceNotFound
from qnet.net import Net


def macs(net):
    return [device.nic.mac[5] for device in net._devices.values()]


def test_a_nic_is_linked_to_its_netdev(net):
    netdev = net.netdev_add("null,id=n0")
    nic = net.device_add("card,id=c0,netdev=n0")
    assert nic.clients[0].peer is netdev
    assert netdev.peer is nic.clients[0]
    assert net.client("c0") is nic.clients[0]


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("card,id=c,mac=02:00:00:00:00:07", {}),
        ("driver=card,id=c,mac=02-00-00-00-00-07", {}),
        ('{"driver": "card", "id": "c", "mac": "02:00:00:00:00:07"}', {}),
        ({"driver": "card", "id": "c", "mac": b"\2\0\0\0\0\7"}, {}),
        ("card", {"id": "c", "mac": "02:00:00:00:00:07"}),
        (None, {"driver": "card", "id": "c", "mac": b"\2\0\0\0\0\7"}),
    ],
)
def test_all_forms_make_the_same(net, spec, options):
    nic = net.device_add(spec, **options)
    assert (nic.name, nic.model, nic.mac) == ("c", "card", b"\2\0\0\0\0\7")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("", "Parameter 'driver' is missing"),
        ("id=a", "Parameter 'driver' is missing"),
        ("nope,id=a", "'nope' is not a valid device model name"),
        ("card,id=9", "Parameter 'id' expects an identifier"),
        ("card,netdev=zz", "Property 'card.netdev' can't find value 'zz'"),
        ("card,netdev=", "Property 'card.netdev' can't find value ''"),
        ("card,netdev=busy", "Property 'card.netdev' can't take value 'busy', it's in use"),
        ("card,id=there", "Duplicate device ID 'there'"),
        ("card,foo=1", "Property 'card.foo' not found"),
        ("card,mac=zz", "Property 'card.mac' doesn't take value 'zz'"),
        ("card,bootindex=x", "Parameter 'bootindex' expects integer"),
        ("card,bootindex=99999999999", "Parameter 'bootindex' expects int32_t"),
        ('{"driver":"card","mac":5}', "Invalid parameter type for 'mac', expected: string"),
        ('{"driver":5}', "Invalid parameter type for 'driver', expected: string"),
        ('{"driver":"card","netdev":5}', "Invalid parameter type for 'netdev', expected: string"),
        ("card,fail=on", "the card refuses"),
    ],
)
def test_refusals_have_qemus_text_and_leave_nothing(net, refused, spec, text):
    net.netdev_add("null,id=busy")
    net.device_add("card,id=there,netdev=busy")
    assert refused(net.device_add, spec) == text
    assert net.device_add("card").mac[5] == 0x57, "the address of the NIC that failed is free again"


def test_s2_names_count_the_clients_of_a_model(net):
    assert [net.device_add(spec).name for spec in ("card", "card,queues=2", "card")] == ["card.0", "card.1", "card.3"]


def test_s2_an_automatic_name_is_never_taken_twice(net):
    for name in ("card.0", "card.1", "card.2"):
        assert net.device_add("card").name == name
    net.device_del("card.0")
    assert net.device_add("card").name == "card.3"
    net.device_add("card,id=card.5")
    assert [net.device_add("card").name, net.device_add("card").name] == ["card.4", "card.6"]


def test_s6_one_client_for_each_queue(net):
    net.netdev_add("probe,id=n0,queues=3")
    nic = net.device_add("card,queues=3,netdev=n0")
    assert [c.peer.info_str for c in nic.clients] == ["queue=0", "queue=1", "queue=2"]
    assert {c.name for c in nic.clients} == {"card.0"}
    assert [c["index"] for c in net.stats()] == [0, 1, 2, 0, 1, 2]


def test_a_nic_and_a_netdev_may_share_a_name(net):
    """S1: look-ups scan in order of creation."""
    nic = net.device_add("card,id=n")
    netdev = net.netdev_add("null,id=n")
    assert net.client("n") is nic.clients[0]
    net.netdev_del("n")
    assert netdev.closed
    assert not nic.closed


def test_m1_m2_addresses_come_back(net):
    for _ in range(3):
        net.device_add("card")
    assert macs(net) == [0x56, 0x57, 0x58]
    net.device_del("card.1")
    assert net.device_add("card").mac[5] == 0x57
    assert net.device_add("card,mac=52:54:00:12:34:59").mac[5] == 0x59
    assert net.device_add("card,mac=00:00:00:00:00:00").mac[5] == 0x5A


def test_device_del(net, refused):
    net.netdev_add("null,id=n0")
    nic = net.device_add("card,id=c,netdev=n0")
    net.device_del("c")
    assert nic.closed
    assert net.client("n0").peer is None
    assert refused(net.device_del, "c") == "Device 'c' not found"
    with pytest.raises(DeviceNotFound, match="netdev_del"):
        net.device_del("n0")
    assert net.device_add("card,id=c,netdev=n0").clients[0].peer is net.client("n0")


def test_memory_and_interrupt_line(probes):
    levels = []
    line = IrqLine()
    buffer = bytearray(4096)
    with Net() as net:
        a = net.device_add("card", memory=buffer, irq=levels.append)
        b = net.device_add("card", memory=[(0x1000, bytearray(4096))], irq=line)
        own = GuestMemory(bytearray(16))
        c = net.device_add("card", memory=own)
        assert [region[:2] for region in a.memory.regions] == [(0, 4096)]
        assert (b.irq, c.memory) == (line, own)
        assert isinstance(a.irq, IrqLine)
        with pytest.raises(BufferError):
            buffer.extend(b"x")
        net.device_del(a.name)
        buffer.extend(b"x")
    own.write(0, b"x")
    own.close()
    gc.collect()


def test_a_nic_needs_memory(probes):
    with Net() as net, pytest.raises(ValueError, match="needs guest memory"):
        net.device_add("card")


def test_e1000_over_the_door(net):
    nic = net.device_add("e1000-82540em,mac=52:54:00:aa:bb:cc")
    assert (nic.name, nic.model, nic.mac.hex()) == ("e1000.0", "e1000", "525400aabbcc")
    assert net.info_network() == "e1000.0: index=0,type=nic,model=e1000,macaddr=52:54:00:aa:bb:cc\n"
