"""Things go in any order, and nothing is left or touched twice (S50 to S54, S58; CVE-2023-3301 and its like)."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from qnet.errors import Error
from qnet.net import Net

from .conftest import MEMORY


def test_s50_filters_go_with_their_netdev(net, refused):
    net.netdev_add("probe,id=u")
    gate = net.object_add("filter-gate,id=f,netdev=u,label=x")
    net.netdev_del("u")
    assert gate.closed
    assert not gate.inserted
    assert refused(net.object_del, "f") == "object 'f' not found"


def test_s54_packets_under_way_are_dropped(net):
    backend = net.netdev_add("probe,id=u")
    nic = net.device_add("card,id=n,netdev=u")
    nic.clients[0].room(0)
    backend.send([b"x" * 60] * 3)
    assert nic.clients[0].queued == 3
    net.device_del("n")
    assert nic.clients[0].stats()["drops"] == {"purged": 3}


def test_backend_first_then_nic(net):
    net.netdev_add("probe,id=u,queues=2")
    net.device_add("card,id=n,netdev=u,queues=2")
    net.netdev_del("u")
    net.device_del("n")
    assert net.stats() == []
    assert net.info_network() == ""


def test_the_id_of_a_ghost_is_free(net):
    net.netdev_add("probe,id=u")
    net.device_add("card,id=n,netdev=u")
    net.netdev_del("u")
    other = net.netdev_add("probe,id=u")
    net.netdev_del("u")
    assert other.closed
    net.netdev_add("probe,id=u")
    assert net.device_add("card,id=m,netdev=u").clients[0].link_down is False


def test_a_hub_port_goes_before_its_nic(net):
    net.netdev_add("hubport,id=h,hubid=0")
    nic = net.device_add("card,id=n,netdev=h")
    net.netdev_del("h")
    nic.clients[0].send([b"x" * 60])
    assert nic.clients[0].link_down
    net.close()
    assert nic.closed


def test_s58_close_takes_everything_in_order_of_creation(probes):
    net = Net(memory=MEMORY)
    net.net_add("null")
    net.nic_init(net.net_add("nic,model=card"))
    net.netdev_add("probe,id=u,queues=2")
    nic = net.device_add("card,netdev=u,queues=2")
    net.netdev_add("probe,id=f")
    gate = net.object_add("filter-gate,id=g,netdev=f,label=x")
    net.netdev_del("u")
    net.close()
    net.close()
    assert nic.closed
    assert all(client.closed for client in nic.clients)
    assert gate.closed
    assert net.info_network() == ""
    assert repr(net) == "<Net 0 clients, closed>"


steps = st.lists(st.tuples(st.sampled_from(
    ["netdev", "port", "plug", "nic", "filter", "legacy", "slot", "init", "del", "undev", "unobj", "link", "send", "pause", "resume"]),
    st.integers(0, 4)), max_size=40)  # fmt: skip


def test_any_order_of_coming_and_going(probes):
    """Whatever is done in whatever order: an Error or success, consistent peers, and nothing left at the end."""

    @given(steps)
    def run(script):
        with Net(memory=MEMORY) as net:
            for action, i in script:
                with contextlib.suppress(Error):
                    do(net, action, i)
                assert not any(client.closed for client in net._clients)
                assert all(client.peer is None or client.peer.peer is client for client in net._clients)
                net.info_network()
                net.check_clients()
        assert net.stats() == []

    def do(net, action, i):
        match action:
            case "netdev":
                net.netdev_add(f"probe,id=b{i}")
            case "port":
                net.netdev_add(f"hubport,id=n{i},hubid={i % 2}")
            case "plug":
                net.netdev_add(f"hubport,id=p{i},hubid={i % 2},netdev=b{i}")       # never a port: a ring of hubs storms
            case "nic":
                net.device_add(f"card,id=c{i},netdev={'nb'[i % 2]}{i}")
            case "filter":
                net.object_add(f"filter-gate,id=f{i},netdev={'nb'[i % 2]}{i},label=x")
            case "legacy":
                net.net_add("probe")
            case "slot":
                net.net_add("nic,model=card") if i % 2 else net.nic_add("probe,model=card")
            case "init":
                for slot in net.nic_table[: i + 1]:
                    if slot.nic is None:
                        net.nic_init(slot)
            case "del":
                net.netdev_del(f"{'nb'[i % 2]}{i % 3}")
            case "undev":
                net.device_del(f"c{i}" if i % 2 else f"card.{i}")
            case "unobj":
                net.object_del(f"f{i}")
            case "link":
                net.set_link(f"{'bn'[i % 2]}{i}", i % 2 == 0)
            case "send":
                for client in net._clients:
                    if hasattr(client, "send"):
                        client.send([b"x" * 60])
            case "pause":
                net.pause()
            case "resume":
                net.resume()

    run()
