"""object_add and object_del: filters and their place in the chain (F1 to F4, F6)."""

import pytest

FULL = "filter-gate,netdev=u,label=x"


def chain(net):
    return [line.split(":")[0].strip(" -") for line in net.info_network().splitlines() if line.startswith("  - ")]


@pytest.fixture
def u(net):
    net.netdev_add("probe,id=u")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("nope,id=g", "Parameter 'qom-type' does not accept value 'nope'"),
        ("id=g", "Parameter 'qom-type' is missing"),
        ("filter-gate", "Parameter 'id' is missing"),
        ("filter-gate,id=g,netdev=u", "Parameter 'label' is missing"),
        ("filter-gate,id=g,label=x", "Parameter 'netdev' is missing"),
        ("filter-gate,id=g,label=x,netdev=zz", "Parameter 'netdev' expects a network backend id"),
        ("filter-gate,id=g,label=x,netdev=n", "Parameter 'netdev' expects a network backend id"),
        ("filter-gate,id=g,label=x,netdev=mq", "multiqueue is not supported"),
        (f"{FULL},id=f", "Duplicate ID 'f' for object"),
        ("nope,id=f", "Duplicate ID 'f' for object"),
        ("nope,id=1", "Parameter 'id' expects an identifier"),
        ("filter-gate,id=g", "Parameter 'netdev' is missing"),
        (f"{FULL},qom-type=nope,id=g", "Parameter 'qom-type' does not accept value 'nope'"),
        (f"{FULL},id=1", "Parameter 'id' expects an identifier"),
        (f"{FULL},id=g,foo=1", "Invalid parameter 'foo'"),
        (f"{FULL},id=g,nofoo", "Invalid parameter 'foo'"),
        (f"{FULL},id=g,a.b=1", "Invalid parameter 'a.b'"),
        (f"{FULL},id=g,queue", "Parameter 'queue' does not accept value 'on'"),
        (f"{FULL},id=g,queue=x", "Parameter 'queue' does not accept value 'x'"),
        (f"{FULL},id=g,insert=x", "Parameter 'insert' does not accept value 'x'"),
        (f"{FULL},id=g,status=x", "Invalid value for netfilter status, should be 'on' or 'off'"),
        (f"{FULL},id=g,position=x", "Parameter 'position' expects 'head', 'tail' or 'id=<id>'"),
        (f"{FULL},id=g,position=id=zz", "filter 'zz' not found"),
        (f"{FULL},id=g,position=id=o", "filter 'o' belongs to a different netdev"),
        (f"{FULL},id=g,fail=on", "the gate refuses"),
        ('{"qom-type":"filter-gate","id":"g","netdev":"u"}', "Parameter 'label' is missing"),
        ('{"id":"g"}', "Parameter 'qom-type' is missing"),
        ('{"qom-type":"filter-gate","id":"g","netdev":"u","label":"x","foo":1}', "Parameter 'foo' is unexpected"),
        ('{"qom-type":"filter-gate","id":"f","netdev":"u","label":"x"}',
         "attempt to add duplicate property 'f' to object (type 'container')"),
        ({"qom-type": "filter-gate", "id": "g", "netdev": 5, "label": "x"}, "Invalid parameter type for 'netdev', expected: string"),
    ],
)
def test_f3_refusals(net, u, refused, spec, text):
    net.netdev_add("probe,id=mq,queues=2")
    net.netdev_add("probe,id=other")
    net.device_add("card,id=n")
    net.object_add(f"{FULL},id=f")
    net.object_add("filter-gate,netdev=other,label=x,id=o")
    assert refused(net.object_add, spec) == text


def test_all_forms_make_the_same(net, u):
    net.object_add(f"{FULL},id=a,queue=tx")
    net.object_add('{"qom-type": "filter-gate", "id": "b", "netdev": "u", "label": "x", "queue": "tx"}')
    net.object_add("filter-gate", id="c", netdev="u", label="x", queue="tx")
    net.object_add(qom_type="filter-gate", id="d", netdev="u", label="x", queue="tx")
    lines = [line[6:] for line in net.info_network().splitlines() if line.startswith("  - ")]
    assert len(lines) == 4
    assert len(set(lines)) == 1


def test_f1_positions(net, u):
    for name, place in [("a", ""), ("b", ",position=head"), ("c", ",position=tail"), ("d", ",position=id=a"),
                        ("e", ",position=id=a,insert=before"), ("f", ",position=id=c,insert=behind"), ("g", ",position=head")]:  # fmt: skip
        net.object_add(f"{FULL},id={name}{place}")
    assert chain(net) == ["g", "b", "e", "a", "d", "c", "f"]
    net.object_del("a")
    assert chain(net) == ["g", "b", "e", "d", "c", "f"]


def test_the_chain_is_the_order_of_the_packets(net, u):
    u = net.client("u")
    first = net.object_add(f"{FULL},id=a")
    second = net.object_add(f"{FULL},id=b,position=head")
    second.mode = "drop"
    net.netdev_add("probe,id=peer").pair(u)
    u.send([b"x" * 60])
    assert (sum(first.seen), sum(second.seen)) == (0, 1)


def test_f4_status(net, u):
    f = net.object_add(f"{FULL},id=a,status=off")
    f.mode = "drop"
    nic = net.device_add("card,netdev=u").clients[0]
    nic.send([b"x" * 60])
    assert len(net.client("u").recv()) == 1
    f.on = True
    nic.send([b"x" * 60])
    assert net.client("u").recv() == []
    assert "status=on" in net.info_network()


def test_f2_queue_is_the_netdevs_view(net, u):
    tx = net.object_add(f"{FULL},id=tx,queue=tx")
    rx = net.object_add(f"{FULL},id=rx,queue=rx")
    nic = net.device_add("card,netdev=u").clients[0]
    net.client("u").send([b"x" * 60])
    nic.send([b"x" * 60] * 2)
    assert (sum(tx.seen), sum(rx.seen)) == (1, 2)


def test_object_del(net, u, refused):
    gate = net.object_add(f"{FULL},id=a")
    net.object_del("a")
    assert not gate.inserted
    assert refused(net.object_del, "a") == "object 'a' not found"
    net.object_add(f"{FULL},id=a")


def test_objects_and_netdevs_have_their_own_names(net, u):
    net.object_add(f"{FULL},id=u")
    net.object_del("u")
    assert net.client("u").name == "u"
