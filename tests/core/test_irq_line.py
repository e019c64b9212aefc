"""Interrupt lines: callable, eventfd, polled; the VMM always ends up with the final level."""

import itertools
import logging
import os
import random
import threading

import pytest

from qnet._host import IrqLine
from qnet.testing import DeviceProbe


def test_a_polled_line_tells_its_level_and_its_rises(net):
    line = IrqLine()
    probe = DeviceProbe(net, irq=line)
    for level in (1, 1, 0, 0, 1):
        probe.set_irq(level)
        assert line.level == level
    assert line.rises == 2


def test_a_callable_hears_each_change_once(net):
    heard = []
    probe = DeviceProbe(net, irq=IrqLine(heard.append))
    for level in (1, 1, 0, 0, 1, 0):
        probe.set_irq(level)
    assert heard == [1, 0, 1, 0]


def test_an_eventfd_is_written_on_each_rise_and_again_by_resample(net):
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    line = IrqLine(fd=fd)
    probe = DeviceProbe(net, irq=line)
    try:
        line.resample()
        probe.set_irq(1)
        probe.set_irq(1)
        assert os.eventfd_read(fd) == 1
        line.resample()
        assert os.eventfd_read(fd) == 1
        probe.set_irq(0)
        line.resample()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fd)
        probe.set_irq(1)
        probe.set_irq(0)
        probe.set_irq(1)
        assert os.eventfd_read(fd) == 2
    finally:
        os.close(fd)


def test_an_eventfd_that_is_full_blocks_nobody(net):
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    os.eventfd_write(fd, 2**64 - 2)
    line = IrqLine(fd=fd)
    DeviceProbe(net, irq=line).set_irq(1)
    os.close(fd)
    assert line.level == 1


def test_what_is_no_line_is_refused():
    with pytest.raises(ValueError, match="not both"):
        IrqLine(print, fd=1)
    with pytest.raises(TypeError, match="callable, not int"):
        IrqLine(5)


def test_the_callable_may_use_the_device(net):
    """A handler that acknowledges at once lowers the line from within the call; it hears of that afterwards."""
    heard = []

    def handler(level):
        heard.append(level)
        if level and len(heard) < 5:
            probe.set_irq(0)
            assert heard[-1] == 1                                               # calls never overlap
            probe.set_irq(1)
            probe.set_irq(0)

    probe = DeviceProbe(net, irq=IrqLine(handler))
    probe.set_irq(1)
    assert heard == [1, 0]


def test_a_callable_that_raises_is_logged_and_hears_the_next_change(net, caplog):
    heard = []

    def handler(level):
        heard.append(level)
        if level:
            raise RuntimeError("no")

    probe = DeviceProbe(net, irq=IrqLine(handler))
    with caplog.at_level(logging.ERROR, "qnet.host"):
        probe.set_irq(1)
        probe.set_irq(0)
    assert heard == [1, 0]
    assert "interrupt callable failed" in caplog.text


@pytest.mark.parametrize("loop_thread", [False, True])
def test_the_last_call_tells_the_final_level_whoever_moved_the_line(net, loop_thread):
    """Threads pull at one line; calls never overlap, never repeat a level, and end with the level of the line."""
    heard, inside = [], threading.Lock()

    def handler(level):
        assert inside.acquire(blocking=False), "two calls at once"
        heard.append(level)
        inside.release()

    line = IrqLine(handler)
    probe = DeviceProbe(net, irq=line)

    def pull(seed):
        rng = random.Random(seed)
        for _ in range(1500):
            probe.set_irq(rng.randrange(2))

    if loop_thread:
        net.start()
        net.call_later(0, lambda: pull(99))
    for final in (1, 0, 1):
        threads = [threading.Thread(target=pull, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if loop_thread:
            net.stop()
        probe.set_irq(final)
        assert line.level == final
        assert heard[-1] == final
    assert all(a != b for a, b in itertools.pairwise(heard))


def test_a_detached_line_tells_nobody_any_more(net):
    heard = []
    line = IrqLine(heard.append)
    probe = DeviceProbe(net, irq=line)
    probe.set_irq(1)
    line.detach()
    line.detach()
    assert line.level == 0
    probe.set_irq(1)
    probe.set_irq(0)
    assert heard == [1]


def test_a_line_may_be_detached_from_within_its_callable(net):
    heard = []
    line = IrqLine(lambda level: (heard.append(level), line.detach()))
    DeviceProbe(net, irq=line).set_irq(1)
    assert heard == [1]
    line.detach()
