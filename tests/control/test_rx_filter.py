"""query_rx_filter (M13)."""


def test_all_nics_that_can_tell(net):
    net.netdev_add("null,id=u")
    net.device_add("card,id=a")
    net.device_add("card,id=b").filter = None
    assert net.query_rx_filter() == [{"name": "a", "promiscuous": False}]
    assert net.query_rx_filter("a") == [{"name": "a", "promiscuous": False}]


def test_errors(net, refused):
    net.netdev_add("null,id=u")
    net.device_add("card,id=b").filter = None
    assert refused(net.query_rx_filter, "u") == "net client(u) isn't a NIC"
    assert refused(net.query_rx_filter, "b") == "net client(b) doesn't support rx-filter querying"
    assert refused(net.query_rx_filter, "zz") == "invalid net client name: zz"


def test_a_netdev_of_the_same_name_is_not_asked(net):
    net.netdev_add("null,id=a")
    net.device_add("card,id=a")
    assert len(net.query_rx_filter("a")) == 1


def test_no_nics(net):
    assert net.query_rx_filter() == []
