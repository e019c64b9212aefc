"""Guest forwards that end in Python: each connection of the guest becomes a (reader, writer) pair for a coroutine."""

import asyncio
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable

__all__ = ["Handler", "LoopThread", "Server"]

log = logging.getLogger("qnet.user")

BACKLOG = 1024
PATIENCE = 2.0                      # seconds given to cancelled handlers

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]


class Server:
    """A unix socket in a directory of its own to which libslirp connects each of the guest's connections; a thread accepts.

    libslirp's connect blocks when the backlog is full, with the network's lock held, so nothing that may wait for the network may
    be what accepts: not the caller's event loop, not a handler.
    """

    def __init__(self, handler: Handler, loop: asyncio.AbstractEventLoop) -> None:
        self.handler = handler
        self.loop = loop
        self.tasks: set[asyncio.Task[None]] = set()
        self.closed = False
        self.directory = tempfile.mkdtemp(prefix="qnet-")                   # mode 0700
        if len(os.fsencode(self.directory)) > 100:                          # the name must fit struct sockaddr_un
            os.rmdir(self.directory)
            self.directory = tempfile.mkdtemp(prefix="qnet-", dir="/tmp")
        self.path = os.path.join(self.directory, "s")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen(BACKLOG)
        self.thread = threading.Thread(target=self._accept, name="qnet-guestfwd", daemon=True)
        self.thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError as e:
                if self.closed:
                    return
                log.warning("guestfwd: %s", e)                              # out of descriptors, most likely
                time.sleep(0.1)
                continue
            try:
                self.loop.call_soon_threadsafe(self._start, connection)
            except RuntimeError:                                            # the caller's loop is closed
                connection.close()

    def _start(self, connection: socket.socket) -> None:
        if self.closed:
            connection.close()
            return
        task = self.loop.create_task(self._serve(connection))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        try:
            await self.handler(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            writer.transport.abort()
        except Exception:
            log.exception("guestfwd: the handler failed")
            writer.transport.abort()
        finally:
            writer.close()

    def close(self) -> None:
        """Stop accepting and cancel the handlers; they end when their loop runs."""
        self.closed = True
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()
        shutil.rmtree(self.directory, ignore_errors=True)
        try:
            self.loop.call_soon_threadsafe(self._cancel)
        except RuntimeError:
            self.tasks.clear()

    def _cancel(self) -> None:
        for task in list(self.tasks):
            task.cancel()


class LoopThread:
    """A private event loop for handlers whose caller has none."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="qnet-guestfwd-loop", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.loop.run_forever()
        while tasks := asyncio.all_tasks(self.loop):
            self.loop.run_until_complete(asyncio.wait(tasks))
        self.loop.run_until_complete(asyncio.sleep(0))                      # transports close one step after their abort
        self.loop.close()

    def close(self) -> None:
        """Stop once the handlers have ended. One that does not end, or waits for the network that is being closed, is left behind."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        if self.thread is not threading.current_thread():
            self.thread.join(PATIENCE)
            if self.thread.is_alive():
                log.warning("guestfwd: a handler does not end when it is cancelled")
