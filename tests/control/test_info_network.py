"""info_network() and check_clients(): QEMU's words and layout (M11, M12)."""

import logging


def test_empty(net):
    assert net.info_network() == ""


def test_m12_a_nic_and_its_peer(net):
    net.netdev_add("probe,id=u")
    net.device_add("card,id=n,netdev=u")
    net.netdev_add("null,id=alone")
    assert net.info_network() == (
        "n: index=0,type=nic,model=card,macaddr=52:54:00:12:34:56\n"
        " \\ u: index=0,type=probe,queue=0\n"
        "alone: index=0,type=null,\n"
    )  # fmt: skip


def test_m12_queues(net):
    net.netdev_add("probe,id=u,queues=2")
    net.device_add("card,id=n,netdev=u,queues=2")
    assert net.info_network() == (
        "n: index=0,type=nic,model=card,macaddr=52:54:00:12:34:56\n"
        " \\ u: index=0,type=probe,queue=0\n"
        "n: index=1,type=nic,model=card,macaddr=52:54:00:12:34:56\n"
        " \\ u: index=1,type=probe,queue=1\n"
    )


def test_m12_hubs(net):
    net.netdev_add("hubport,id=h0,hubid=3")
    net.device_add("card,netdev=h0")
    net.netdev_add("hubport,id=h1,hubid=3")
    net.netdev_add("probe,id=b")
    net.netdev_add("hubport,id=c,hubid=0,netdev=b")
    assert net.info_network() == (
        "hub 0\n"
        " \\ c: b: index=0,type=probe,queue=0\n"
        "hub 3\n"
        " \\ h1\n"
        " \\ h0: card.0: index=0,type=nic,model=card,macaddr=52:54:00:12:34:56\n"
    )


def test_m12_hubs_joined(net):
    net.netdev_add("hubport,id=a,hubid=0")
    net.netdev_add("hubport,id=a.b,hubid=1,netdev=a")
    assert net.info_network() == (
        "hub 1\n \\ a.b: a: index=0,type=hubport,\nhub 0\n \\ a: a.b: index=0,type=hubport,\n"
    )


def test_m12_filters_follow_their_client(net):
    net.netdev_add("probe,id=u")
    net.device_add("card,id=n,netdev=u")
    net.object_add("filter-gate,id=f,netdev=u,label=x")
    net.object_add("filter-gate,id=g,netdev=u,label=y,position=id=f,insert=before,status=off,queue=tx,note=z")
    tail = "netdev=u,queue=all\n"
    assert net.info_network() == (
        "n: index=0,type=nic,model=card,macaddr=52:54:00:12:34:56\n"
        " \\ u: index=0,type=probe,queue=0\n"
        "filters:\n"
        "  - g: type=filter-gate,label=y,note=z,position=id=f,status=off,insert=before,netdev=u,queue=tx\n"
        "  - f: type=filter-gate,label=x,position=tail,status=on,insert=behind," + tail
    )  # fmt: skip


def test_m12_a_deleted_backend_stays_under_its_nic(net):
    net.netdev_add("probe,id=u")
    net.device_add("card,id=n,netdev=u")
    net.netdev_del("u")
    net.netdev_add("probe,id=u")
    assert net.info_network() == (
        "n: index=0,type=nic,model=card,macaddr=52:54:00:12:34:56\n"
        " \\ u: index=0,type=probe,queue=0\n"
        "u: index=0,type=probe,queue=0\n"
    )  # fmt: skip


def test_m11_nothing_to_say(net, caplog):
    net.netdev_add("null,id=u")
    net.device_add("card,netdev=u")
    net.nic_init(net.nic_add("null,model=card"))
    assert net.check_clients() == []
    assert caplog.text == ""


def test_m11_warnings_are_returned_and_logged(net, caplog):
    net.netdev_add("hubport,id=a,hubid=1")
    net.netdev_add("hubport,id=b,hubid=1")
    net.device_add("card,id=n")
    net.netdev_add("probe,id=u")
    expected = [
        "hub port b has no peer", "hub port a has no peer", "netdev a has no peer", "netdev b has no peer", "nic n has no peer",
        "netdev u has no peer",
    ]  # fmt: skip
    with caplog.at_level(logging.WARNING, "qnet.net"):
        assert net.check_clients() == expected
    assert caplog.messages == expected


def test_m11_hubs(net):
    net.netdev_add("probe,id=host")
    net.netdev_add("hubport,id=a,hubid=1,netdev=host")
    net.netdev_add("null,id=sink")
    net.netdev_add("hubport,id=b,hubid=2,netdev=sink")
    net.netdev_add("hubport,id=c,hubid=2")
    net.device_add("card,netdev=c")
    assert net.check_clients() == ["hub 2 is not connected to host network", "hub 1 with no nics"]
    net.netdev_add("hubport,id=d,hubid=1")
    net.device_add("card,netdev=d")
    assert net.check_clients() == ["hub 2 is not connected to host network"]


def test_m11_nics_that_were_not_made(net):
    net.nic_add("null")
    net.nic_add("null,id=x,model=card")
    assert net.check_clients() == [
        "netdev #net000 has no peer",
        "netdev x has no peer",
        "requested NIC (anonymous, model unspecified) was not created (not supported by this machine?)",
        "requested NIC (x, model card) was not created (not supported by this machine?)",
    ]
