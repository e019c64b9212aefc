"""asyncio and uvloop: a network on a loop, transports with flow control, `async for`; cancellation and close leave nothing."""

import asyncio
import logging
import os
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvloop

from qnet import Net
from qnet.aio import FrameProtocol, FrameTransport, attach, create_frame_endpoint
from qnet.testing import Port

PATIENCE = 30

uvloop.new_event_loop().close()         # libuv keeps two descriptors of its own from its first loop on

Run = Callable[[Callable[[], Awaitable[Any]]], Any]


def frame(n: int, size: int = 60) -> bytes:
    return (struct.pack("!I", n) + b"\x02" * 8 + b"\x88\xb5").ljust(size, b"\xa5")[:size]


def numbers(frames: Any) -> list[int]:
    return [struct.unpack_from("!I", f)[0] for f in frames]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """run(coroutine function): on a loop of its own, with a deadline; what the loop complains about is an error."""

    def run(main: Callable[[], Awaitable[Any]]) -> Any:
        complaints: list[dict[str, Any]] = []

        async def guarded() -> Any:
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
            return await asyncio.wait_for(main(), PATIENCE)  # type: ignore[arg-type]

        with asyncio.Runner(loop_factory=request.param) as runner:
            result = runner.run(guarded())
        assert complaints == []
        return result

    return run


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as net:
        yield net


def wire(net: Net, *names: str) -> None:
    """These netdevs on hub 0."""
    for name in names:
        net.netdev_add("hubport", id=f"{name}.port", hubid=0, netdev=name)


class Recorder(FrameProtocol):
    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.events: list[str] = []
        self.transport: Any = None
        self.changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.tell("made")

    def tell(self, what: str) -> None:
        self.events.append(what)
        self.changed.set()

    def frames_received(self, frames: list[memoryview]) -> None:
        self.frames += [bytes(f) for f in frames]
        self.changed.set()

    def pause_writing(self) -> None:
        self.tell("pause")

    def resume_writing(self) -> None:
        self.tell("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.tell(f"lost {exc}")

    async def until(self, done: Callable[[], Any]) -> None:
        while not done():
            self.changed.clear()
            await self.changed.wait()


# --------------------------------------------------------------------------------------------------------------------- attach


def test_a_loop_moves_the_network(run: Run, net: Net) -> None:
    pair: Any = net.netdev_add("socketpair,id=s0")
    p0 = net.client("py", id="p0")
    wire(net, "s0", "p0")

    async def main() -> None:
        there = asyncio.get_running_loop().create_future()
        p0.on_frames = lambda frames: there.set_result(bytes(frames[0]))
        with attach(net):
            net.loop.call_later(1_000_000, lambda: pair.socket.send(frame(1)))
            assert await there == frame(1)

    run(main)
    assert net.pump() >= 0                              # it can be moved another way now


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("end", ["close", "network", "twice", "other thread", "loop"])
def test_an_attachment_leaves_nothing(run: Run, end: str) -> None:
    net = Net()
    pair: Any = net.netdev_add("socketpair,id=s0")
    before = descriptors()
    attachment: Any = None

    async def main() -> None:
        nonlocal attachment
        loop = asyncio.get_running_loop()
        inside = descriptors()
        attachment = attach(net)
        assert len(descriptors()) == len(inside) + 1
        [fd] = [int(fd) for fd in descriptors() - inside]
        pair.socket.send(frame(1))                      # something is due as it ends
        if end in ("close", "twice"):
            attachment.close()
        if end == "twice":
            attachment.close()
        if end == "network":
            net.close()
        if end == "other thread":
            thread = threading.Thread(target=attachment.close)
            thread.start()
            thread.join()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        if end != "loop":
            assert attachment.closed
            assert not loop.remove_reader(fd)           # there is none
            assert descriptors() <= inside

    run(main)
    if end == "loop":
        attachment.close()
    assert len(descriptors()) <= len(before)
    net.close()


def test_an_attachment_that_is_forgotten_goes_with_its_loop(run: Run) -> None:
    """nothing_left sees to it."""
    net = Net()

    async def main() -> None:
        attach(net)

    run(main)
    net.close()


def test_a_task_that_is_cancelled_detaches(run: Run, net: Net) -> None:
    async def main() -> None:
        inside = descriptors()

        async def work() -> None:
            with attach(net):
                await asyncio.get_running_loop().create_future()

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        assert descriptors() != inside
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert descriptors() == inside

    run(main)


def test_a_closed_network_is_not_attached(run: Run) -> None:
    net = Net()
    net.close()

    async def main() -> None:
        with pytest.raises(ValueError, match="closed"):
            attach(net)

    run(main)


# ----------------------------------------------------------------------------------------------------------------- transports


def test_frames_both_ways(run: Run, net: Net) -> None:
    far = net.client("py", id="far")

    async def main() -> None:
        transport, protocol = await create_frame_endpoint(Recorder, net, id="p0")
        wire(net, "p0", "far")
        assert isinstance(transport, FrameTransport)
        assert transport.get_extra_info("port") is net.client("p0")
        await protocol.until(lambda: protocol.events)
        assert protocol.transport is transport
        far.send_many([frame(i) for i in range(200)])
        await protocol.until(lambda: len(protocol.frames) == 200)
        assert numbers(protocol.frames) == list(range(200))
        transport.sendto(frame(1))
        transport.send_many([bytearray(frame(2)), memoryview(frame(3))])
        assert [bytes(f) for f in far.recv()] == [frame(1), frame(2), frame(3)]
        transport.close()
        assert transport.is_closing()
        await protocol.until(lambda: "lost None" in protocol.events)
        assert protocol.events == ["made", "lost None"]
        transport.sendto(frame(4))
        assert far.recv() == []

    run(main)
    assert [client.name for client in net.clients] == ["far", "p0.port", "far.port"]


def test_a_datagram_protocol_will_do(run: Run, net: Net) -> None:
    """Protocols written for UDP get one frame at a time, as bytes."""
    far = net.client("py", id="far")
    got: list[tuple[bytes, Any]] = []

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            got.append((data, addr))
            self.transport.sendto(data, addr)

    async def main() -> None:
        transport, _ = await create_frame_endpoint(Echo, net, id="p0")
        wire(net, "p0", "far")
        answered = asyncio.get_running_loop().create_future()
        far.on_frames = lambda frames: answered.set_result([bytes(f) for f in frames])
        await asyncio.sleep(0)
        far.send(frame(1))
        assert await answered == [frame(1)]
        transport.close()

    run(main)
    assert got == [(frame(1), None)]


@pytest.mark.parametrize("started", [True, False])
def test_whatever_moves_the_network(run: Run, net: Net, started: bool) -> None:
    """The network's own thread, or this loop."""
    pair: Any = net.netdev_add("socketpair,id=s0")
    wire(net, "s0")

    async def main() -> None:
        transport, protocol = await create_frame_endpoint(Recorder, net, id="p0")
        wire(net, "p0")
        if started:
            net.start()
        else:
            attach(net)
        for i in range(100):
            pair.socket.send(frame(i))
            await protocol.until(lambda n=i: len(protocol.frames) > n)
        assert numbers(protocol.frames) == list(range(100))
        transport.close()
        await protocol.until(lambda: "lost None" in protocol.events)
        net.close()

    run(main)


def test_writing_is_paused_while_there_is_no_room(run: Run, net: Net) -> None:
    nic = Port(net.loop, "nic0", capacity=10)

    async def main() -> None:
        transport, protocol = await create_frame_endpoint(Recorder, net, id="p0")
        nic.pair(net.client("p0"))
        transport.set_write_buffer_limits(high=6000, low=600)
        assert transport.get_write_buffer_limits() == (600, 6000)
        await protocol.until(lambda: protocol.events)
        transport.send_many([frame(i) for i in range(110)])
        assert transport.get_write_buffer_size() == 6000
        assert protocol.events == ["made"]
        transport.sendto(frame(110))
        assert protocol.events == ["made", "pause"]
        nic.room(90)
        while transport.get_write_buffer_size() != 11 * 60:
            await asyncio.sleep(0)
        assert protocol.events == ["made", "pause"]
        nic.room(1)
        await protocol.until(lambda: "resume" in protocol.events)
        transport.close()                               # sends what is left
        assert transport.get_write_buffer_size() > 0
        nic.room(None)
        await protocol.until(lambda: "lost None" in protocol.events)
        assert numbers(nic.recv()) == list(range(111))

    run(main)
    nic.close()


def test_abort_forgets_what_is_kept(run: Run, net: Net) -> None:
    nic = Port(net.loop, "nic0", capacity=1)

    async def main() -> None:
        transport, protocol = await create_frame_endpoint(Recorder, net, id="p0")
        nic.pair(net.client("p0"))
        await protocol.until(lambda: protocol.events)
        transport.send_many([frame(i) for i in range(10)])
        transport.abort()
        await protocol.until(lambda: "lost None" in protocol.events)
        nic.room(None)
        assert numbers(nic.recv()) == [0]
        transport.abort()
        transport.close()
        await asyncio.sleep(0)
        assert protocol.events.count("lost None") == 1

    run(main)
    nic.close()


@pytest.mark.parametrize("limits", [(-1, None), (10, 20)])
def test_limits_that_make_no_sense(run: Run, net: Net, limits: tuple[int, int | None]) -> None:
    async def main() -> None:
        transport, _ = await create_frame_endpoint(Recorder, net)
        with pytest.raises(ValueError, match="must be >="):
            transport.set_write_buffer_limits(*limits)
        transport.close()

    run(main)


def test_while_reading_is_paused_senders_wait(run: Run, net: Net) -> None:
    nic = Port(net.loop, "nic0", flow_control=True)

    async def main() -> None:
        transport, protocol = await create_frame_endpoint(Recorder, net, id="p0")
        nic.pair(net.client("p0"))
        await protocol.until(lambda: protocol.events)
        transport.pause_reading()
        assert not transport.is_reading()
        nic.post([frame(i) for i in range(10)])
        await asyncio.sleep(0.01)
        assert (nic.backlog, protocol.frames) == (10, [])
        transport.resume_reading()
        assert transport.is_reading()
        await protocol.until(lambda: len(protocol.frames) == 10)
        assert nic.backlog == 0
        transport.close()

    run(main)
    nic.close()


@pytest.mark.parametrize("how", ["netdev_del", "net.close", "thread"])
def test_the_connection_is_lost_with_the_netdev(run: Run, how: str) -> None:
    net = Net()

    async def main() -> None:
        transport, protocol = await create_frame_endpoint(Recorder, net, id="p0")
        await protocol.until(lambda: protocol.events)
        if how == "netdev_del":
            net.netdev_del("p0")
        elif how == "net.close":
            net.close()
        else:
            thread = threading.Thread(target=net.close)
            thread.start()
            thread.join()
        await protocol.until(lambda: "lost None" in protocol.events)
        assert transport.is_closing()
        transport.close()
        transport.sendto(frame(1))

    run(main)
    net.close()


def test_a_client_that_exists_is_left_as_it_is(run: Run, net: Net) -> None:
    port = net.client("py", id="p0")

    async def main() -> None:
        with pytest.raises(TypeError, match="takes no options: filter"):
            await create_frame_endpoint(Recorder, port, filter="ip")
        transport, protocol = await create_frame_endpoint(Recorder, port)
        await asyncio.sleep(0)
        transport.close()
        await protocol.until(lambda: "lost None" in protocol.events)
        assert net.client("p0") is port
        assert not port.closed
        assert port.on_readable is port.on_writable is port.closing is None

    run(main)


def test_factories_and_protocols_that_are_none(run: Run, net: Net) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await create_frame_endpoint(lambda: 1 // 0, net)
        with pytest.raises(TypeError, match="neither frames_received"):
            await create_frame_endpoint(asyncio.BaseProtocol, net)

    run(main)
    assert net.clients == ()


def test_a_protocol_that_raises_is_reported_and_goes_on(net: Net) -> None:
    far = net.client("py", id="far")
    seen: list[str] = []

    class Bad(Recorder):
        def frames_received(self, frames: list[memoryview]) -> None:
            super().frames_received(frames)
            raise RuntimeError("no")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(context["message"]))
        transport, protocol = await create_frame_endpoint(Bad, net, id="p0")
        wire(net, "p0", "far")
        await protocol.until(lambda: protocol.events)
        for i in range(2):
            far.send(frame(i))
            await protocol.until(lambda n=i: len(protocol.frames) > n)
        transport.close()

    asyncio.run(main())
    assert seen == ["a protocol failed to receive frames"] * 2


# ------------------------------------------------------------------------------------------------------------------ async for


def test_async_for(run: Run, net: Net) -> None:
    far, port = net.client("py", id="far"), net.client("py", id="p0")
    wire(net, "far", "p0")

    async def main() -> list[int]:
        got: list[int] = []

        async def send() -> None:
            for i in range(0, 500, 100):
                far.send_many([frame(i + k) for k in range(100)])
                await asyncio.sleep(0)

        task = asyncio.create_task(send())
        async for frames in port:
            assert len(frames) <= 64
            got += numbers(frames)
            if len(got) == 500:
                break
        await task
        return got

    assert run(main) == list(range(500))
    assert port.on_readable is None


@pytest.mark.parametrize("how", ["here", "thread"])
def test_async_for_ends_with_the_client(run: Run, how: str) -> None:
    net = Net()
    port = net.client("py", id="p0")

    async def main() -> None:
        async def read() -> int:
            n = 0
            async for _ in port:
                n += 1
            return n

        task = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        if how == "here":
            net.close()
        else:
            threading.Thread(target=net.close).start()
        assert await task == 0
        assert await read() == 0                        # of a closed one: over at once

    run(main)
    net.close()


def test_async_for_that_is_cancelled_lets_go_and_loses_nothing(run: Run, net: Net) -> None:
    far, port = net.client("py", id="far"), net.client("py", id="p0")
    wire(net, "far", "p0")

    async def main() -> None:
        got: list[int] = []

        async def read() -> None:
            async for frames in port:
                got.extend(numbers(frames))

        for i in range(20):
            task = asyncio.create_task(read())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            far.send(frame(i))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert port.on_readable is port.closing is None
        got.extend(numbers(port.recv()))
        assert got == list(range(20))

    run(main)


def test_one_reader_at_a_time(run: Run, net: Net) -> None:
    port = net.client("py", id="p0")

    async def main() -> None:
        async def read() -> None:
            async for _ in port:
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="p0 has a reader already"):
            await read()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        port.on_frames = print
        with pytest.raises(RuntimeError, match="p0 has a reader already"):
            await read()
        port.on_frames = None

    run(main)


def test_frames_from_another_thread_wake_the_loop(run: Run, net: Net) -> None:
    far, port = net.client("py", id="far"), net.client("py", id="p0", max_packets=100_000)
    wire(net, "far", "p0")

    async def main() -> None:
        thread = threading.Thread(target=lambda: [far.send_many([frame(i)]) for i in range(2000)])
        thread.start()
        got: list[int] = []
        async for frames in port:
            got += numbers(frames)
            if len(got) == 2000:
                break
        assert got == list(range(2000))
        thread.join()

    run(main)


def test_a_loop_that_is_gone_harms_nobody(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    """A transport of a loop that was closed under it: frames that come later are nobody's, and raise nothing."""
    far = net.client("py", id="far")
    keep: list[Any] = []

    async def main() -> None:
        transport, protocol = await create_frame_endpoint(Recorder, net, id="p0")
        keep.append(transport)
        wire(net, "p0", "far")
        await protocol.until(lambda: protocol.events)

    asyncio.run(main())
    with caplog.at_level(logging.WARNING):
        far.send(frame(1))
        threads = [threading.Thread(target=far.send, args=(frame(2),))]
        for t in threads:
            t.start()
            t.join()
    assert caplog.records == []
    assert net.client("p0").waiting[0] == 2  # type: ignore[attr-defined]
