"""set_link by name (S55), and what stays of it when a backend goes (S51)."""

import pytest

from qnet.errors import DeviceNotFound


def link(net, netdev="u", **options):
    backend = net.netdev_add("probe", id=netdev, **options)
    nic = net.device_add("card", id=f"nic-{netdev}", netdev=netdev, **options)
    return backend, nic


def test_unknown_name(net, refused):
    assert refused(net.set_link, "zz", False) == "Device 'zz' not found"
    net.netdev_add("null,id=a")
    with pytest.raises(DeviceNotFound, match="there are: a"):
        net.set_link("zz", True)


def test_a_netdev_takes_its_nics_link_along(net):
    backend, nic = link(net)
    net.set_link("u", False)
    assert (backend.link_down, nic.clients[0].link_down) == (True, True)
    assert nic.clients[0].link_changes == 1
    net.set_link("u", True)
    assert (backend.link_down, nic.clients[0].link_down) == (False, False)


def test_b14_a_nics_link_leaves_its_backends_up(net):
    backend, nic = link(net)
    net.set_link("nic-u", False)
    assert (backend.link_down, nic.clients[0].link_down) == (False, True)
    assert backend.link_changes == 1


def test_all_queues_of_a_name(net):
    backend, nic = link(net, queues=3)
    net.set_link("u", False)
    assert [c.link_down for c in nic.clients] == [True] * 3
    assert [c["name"] for c in net.stats() if net.client(c["name"]) is backend] == ["u"] * 3


def test_all_clients_of_a_name(net):
    """S1: a NIC and a netdev may share one."""
    nic = net.device_add("card,id=n")
    netdev = net.netdev_add("null,id=n")
    net.set_link("n", False)
    assert (nic.clients[0].link_down, netdev.link_down) == (True, True)


def test_frames_do_not_pass_a_link_that_is_down(net):
    backend, nic = link(net)
    net.set_link("u", False)
    nic.clients[0].send([b"a" * 60])
    net.set_link("u", True)
    nic.clients[0].send([b"b" * 60])
    assert backend.recv() == [b"b" * 60]
    assert nic.clients[0].stats()["drops"] == {"link-down": 1}


def test_s51_the_nic_outlives_its_backend(net, refused):
    backend, nic = link(net)
    client = nic.clients[0]
    net.netdev_del("u")
    assert backend.closed
    assert client.link_down
    assert client.link_changes == 1
    assert refused(net.set_link, "u", True) == "Device 'u' not found"
    net.set_link("nic-u", True)
    client.send([b"a" * 60])
    assert not client.link_down
    ghost = net.stats()[-1]
    assert (ghost["name"], ghost["peer"], ghost["drops"]) == ("u", "nic-u", {"link-down": 1})


def test_s51_all_queues_lose_their_link(net):
    _, nic = link(net, queues=2)
    net.netdev_del("u")
    assert [(c.link_down, c.peer.name) for c in nic.clients] == [(True, "u")] * 2
