"""The network as a whole: ways to run it, run state, threads, and that two of them never meet."""

import select
import threading

import pytest

import qnet
from qnet import Net, VirtualClock

from .conftest import MEMORY


def test_two_networks_share_nothing(net):
    with Net(memory=MEMORY) as other:
        a, b = net.netdev_add("null,id=a"), other.netdev_add("null,id=a")
        net.netdev_add("hubport,id=h,hubid=0")
        assert net.device_add("card").mac == other.device_add("card").mac
        assert other.hubs == {}
        with pytest.raises(ValueError, match="one network"):
            a.pair(b)


def test_manual_mode():
    with Net(clock=VirtualClock(5)) as net:
        fired = []
        net.loop.call_later(100, lambda: fired.append(net.now()))
        net.run_until(104)
        assert fired == []
        net.run_until(1000)
        assert fired == [105]
        assert (net.now(), isinstance(net.clock, VirtualClock)) == (1000, True)
        with pytest.raises(RuntimeError):
            net.start()


def test_any_loop_mode():
    with Net() as net:
        fired = []
        net.loop.call_later(0, lambda: fired.append(1))
        while not fired:
            assert select.select([net.fileno()], [], [], 10)[0]
            net.pump()
        assert net.clock is None


def test_thread_mode():
    with Net() as net:
        fired = threading.Event()
        net.start()
        net.loop.call_later(0, fired.set)
        assert fired.wait(10)
        net.stop()
        net.start()


def test_s37_pause_and_resume(net):
    backend = net.netdev_add("probe,id=u")
    nic = net.device_add("card,netdev=u").clients[0]
    nic.room(0)
    backend.send([b"a" * 60])
    net.pause()
    assert not net.running
    assert (nic.queued, nic.stats()["drops"]) == (0, {"purged": 1})
    nic.room(None)
    backend.send([b"b" * 60])
    assert nic.recv() == []
    net.resume()
    assert net.running
    assert nic.recv() == [b"b" * 60]


def test_s37_what_can_be_delivered_before_a_pause_is(net):
    a, b = net.netdev_add("probe,id=a"), net.netdev_add("probe,id=b")
    a.pair(b)
    net.loop.running = False
    a.send([b"a" * 60])
    net.loop.running = True
    net.pause()
    assert b.recv() == [b"a" * 60]


def test_stats_name_every_client(net):
    net.netdev_add("probe,id=u")
    nic = net.device_add("card,id=c,netdev=u").clients[0]
    nic.send([b"x" * 60, b"y" * 100])
    u, c = net.stats()
    assert (u["name"], u["type"], u["index"], u["peer"]) == ("u", "probe", 0, "c")
    assert (u["rx_packets"], u["rx_bytes"], c["tx_packets"], c["type"], c["peer"]) == (2, 160, 2, "nic", "u")


def test_unknown_client(net):
    with pytest.raises(qnet.DeviceNotFound):
        net.client("zz")


def test_callables_run_without_the_control_planes_lock(net):
    """A callable may take the VMM's lock while another thread holds that and asks the network something."""
    vmm, inside, answered = threading.Lock(), threading.Event(), []

    def callback():
        inside.set()
        with vmm:
            answered.append("callable")

    def asker():
        with vmm:
            vmm_taken.set()
            inside.wait(10)
            net.info_network()
            answered.append("asker")

    vmm_taken = threading.Event()
    net.loop.call_later(0, callback)
    thread = threading.Thread(target=asker)
    thread.start()
    vmm_taken.wait(10)
    while not inside.is_set():
        net.pump()
        net.set_link(net.netdev_add("null,id=a").name, True)
        net.netdev_del("a")
    thread.join(10)
    assert sorted(answered) == ["asker", "callable"]


def test_callables_of_an_operation_run_before_it_returns_and_may_call_back(net):
    seen = []
    with net._lock:
        net.loop.call_later(0, lambda: seen.append(net.info_network()))
        while not net.pump():
            pass
        assert seen == []
    assert seen == [""]


def test_threads_add_and_delete(net):
    errors = []

    def work(i):
        try:
            for _ in range(30):
                net.netdev_add(f"probe,id=n{i}")
                net.device_add(f"card,id=c{i},netdev=n{i}")
                net.info_network()
                net.stats()
                net.netdev_del(f"n{i}")
                net.device_del(f"c{i}")
        except Exception as e:
            errors.append(e)

    net.start()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert net.stats() == []


def test_close_from_a_callable():
    net = Net()
    done = threading.Event()

    def close():
        net.close()
        done.set()

    net.start()
    net.loop.call_later(0, close)
    assert done.wait(10)


def test_public_names():
    assert all(hasattr(qnet, name) for name in qnet.__all__)
    assert qnet.__version__.count(".") == 2
