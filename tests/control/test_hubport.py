"""hubport on the control side: hubs, their ports and what is plugged in (H1, H5)."""

import pytest


def ports(net):
    return {hub: [(p.name, p.peer and p.peer.name) for p in ports] for hub, ports in net.hubs.items()}


def test_h1_hubs_come_on_first_use(net):
    net.netdev_add("hubport,id=a,hubid=3")
    net.netdev_add("hubport,id=b,hubid=-7")
    net.netdev_add("hubport,id=c,hubid=3")
    assert ports(net) == {-7: [("b", None)], 3: [("c", None), ("a", None)]}
    assert list(net.hubs) == [-7, 3]


def test_h1_a_hub_stays_when_its_ports_go(net):
    net.netdev_add("hubport,id=a,hubid=3")
    net.netdev_del("a")
    assert ports(net) == {3: []}


def test_h5_a_netdev_is_plugged_in(net):
    net.netdev_add("null,id=n0")
    net.netdev_add("hubport,id=a,hubid=0,netdev=n0")
    assert ports(net) == {0: [("a", "n0")]}


def test_h5_what_is_plugged_in_cannot_be_plugged_in_again(net, refused):
    """QEMU ends with an assertion here."""
    net.netdev_add("null,id=n0")
    net.netdev_add("hubport,id=a,hubid=0,netdev=n0")
    assert refused(net.netdev_add, "hubport,id=b,hubid=0,netdev=n0") == "netdev 'n0' is in use"
    assert refused(net.netdev_add, "hubport,id=b,hubid=1,netdev=a") == "netdev 'a' is in use"
    net.device_add("card,id=c")
    assert refused(net.netdev_add, "hubport,id=b,hubid=0,netdev=c") == "netdev 'c' not found"


def test_a_port_plugs_into_another_hubs_port(net):
    net.netdev_add("hubport,id=a,hubid=0")
    net.netdev_add("hubport,id=b,hubid=1,netdev=a")
    assert ports(net) == {1: [("b", "a")], 0: [("a", "b")]}


@pytest.mark.parametrize("first", ["n0", "a"])
def test_s53_either_side_goes_and_the_other_is_free(net, first):
    net.netdev_add("null,id=n0")
    net.netdev_add("hubport,id=a,hubid=0,netdev=n0")
    net.netdev_del(first)
    other = "a" if first == "n0" else "n0"
    assert net.client(other).peer is None
    assert net.device_add(f"card,netdev={other}").clients[0].peer is net.client(other)


def test_frames_cross_the_hub(net):
    nics = []
    for i in range(3):
        net.netdev_add(f"hubport,id=h{i},hubid=0")
        nics.append(net.device_add(f"card,netdev=h{i}").clients[0])
    nics[0].send([b"x" * 60])
    assert [nic.recv() for nic in nics] == [[], [b"x" * 60], [b"x" * 60]]
