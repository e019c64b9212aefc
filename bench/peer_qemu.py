"""A real QEMU as the system under test: no guest runs in it, its registers are reached over its qtest server, its memory is ours."""

import mmap
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import ClassVar

from peer_driver import MACS, RAM_SIZE, CheckError

BAR_BASE, BAR_STEP, FIRST_SLOT = 0xE0000000, 0x00100000, 4
# cli; hlt; jmp back: all that a virtual CPU ever does
BIOS = b"\xf4" * 0xFFF0 + b"\xfa\xf4\xeb\xfd" + b"\xf4" * 12


class QemuMissingError(Exception):
    pass


class Qemu:
    """QEMU with `nics` e1000s on hub 0 and, with `sink`, one more port without a peer.

    Guest memory is a memfd that QEMU maps too, so rings and payloads cost no round trip. The qtest server needs no `-accel qtest`,
    which Debian's build does not have: it works beside KVM or TCG, whose CPU is halted.
    """

    label: ClassVar[str] = "QEMU"
    program: ClassVar[str] = "qemu-system-x86_64"
    accel: ClassVar[str] = ""
    cpu: ClassVar[int | None] = None

    @classmethod
    def find(cls, program: str, accel: str | None) -> str:
        """Choose program and accelerator; returns a line for the report. QemuMissingError says what to install."""
        cls.program = program
        if not shutil.which(program):
            raise QemuMissingError(
                f"{program} is not there. Install the Debian package qemu-system-x86 (apt install qemu-system-x86), name another one with "
                "--qemu, or measure qnet alone with --only-qnet."
            )
        have = subprocess.run([program, "-accel", "help"], capture_output=True, text=True, check=True).stdout.split()
        kvm = "kvm" in have and os.access("/dev/kvm", os.R_OK | os.W_OK)
        cls.accel = accel or ("qtest" if "qtest" in have else "kvm" if kvm else "tcg")
        version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
        return f"{version.removeprefix('QEMU emulator version ')}, accel {cls.accel}"

    def __init__(self, nics: int, sink: bool, netdev: str = "") -> None:
        self.nics = nics
        self.reply = b""
        self.process: subprocess.Popen[bytes] | None = None
        self.socket: socket.socket | None = None
        fd = os.memfd_create("peer-ram", 0)
        try:
            os.ftruncate(fd, RAM_SIZE)
            self.mem = mmap.mmap(fd, RAM_SIZE)
            with tempfile.TemporaryDirectory(prefix="qnet-peer-") as tmp:
                self._start(tmp, fd, sink, netdev)
            self._map_bars()
        except BaseException:
            self.close()
            raise
        finally:
            os.close(fd)

    def _arguments(self, tmp: str, fd: int, sink: bool, netdev: str) -> list[str]:
        argv = [
            self.program, "-accel", self.accel, "-qtest", f"unix:{tmp}/qtest", "-qtest-log", "none", "-bios", f"{tmp}/bios",
            "-nodefaults", "-display", "none", "-machine", "q35,memory-backend=ram0,usb=off", "-m", str(RAM_SIZE >> 20), "-smp", "1",
            "-object", f"memory-backend-file,id=ram0,size={RAM_SIZE},mem-path=/proc/self/fd/{fd},share=on,prealloc=on",
        ]  # fmt: skip
        for i in range(self.nics):
            argv += ["-netdev", netdev or f"hubport,id=n{i},hubid=0"]
            argv += ["-device", f"e1000,addr={FIRST_SLOT + i:#x},mac={MACS[i].hex(':')},romfile=,netdev=n{i}"]
        if sink:
            argv += ["-netdev", "hubport,id=idle,hubid=0"]
        return argv

    def _start(self, tmp: str, fd: int, sink: bool, netdev: str) -> None:
        with open(f"{tmp}/bios", "wb") as f:
            f.write(BIOS)
        with socket.socket(socket.AF_UNIX) as listener, open(f"{tmp}/stderr", "w+b") as errors:
            listener.bind(f"{tmp}/qtest")
            listener.listen(1)
            listener.settimeout(0.2)
            argv = ["setpriv", "--pdeathsig", "KILL", "--", *self._arguments(tmp, fd, sink, netdev)]    # it ends when we do, however
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, pass_fds=[fd])
            for _ in range(150):
                try:
                    self.socket, _ = listener.accept()
                    break
                except TimeoutError:
                    if self.process.poll() is not None:
                        break
            if self.socket is None:
                errors.seek(0)
                raise RuntimeError(f"QEMU did not start: {errors.read().decode(errors='replace').strip() or 'no answer for 30 s'}")
            self.cpu_clock = ~self.process.pid << 3 | 2         # clock_getcpuclockid(3)
            self.socket.settimeout(60)
            self._command(b"readl 0x0\n")       # answered once QEMU is past its initialisation
        if self.cpu is not None:
            for thread in os.listdir(f"/proc/{self.process.pid}/task"):
                os.sched_setaffinity(int(thread), {self.cpu})

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if hasattr(self, "mem"):
            self.mem.close()

    # ---- the qtest protocol: a line there, a line back

    def _command(self, line: bytes) -> bytes:
        assert self.socket is not None
        self.socket.sendall(line)
        while True:
            while b"\n" in self.reply:
                reply, _, self.reply = self.reply.partition(b"\n")
                if reply.startswith(b"IRQ"):
                    continue
                if not reply.startswith(b"OK"):
                    raise RuntimeError(f"qtest: {line!r} -> {reply!r}")
                return reply[3:]
            chunk = self.socket.recv(65536)
            if not chunk:
                raise RuntimeError("QEMU closed the qtest connection")
            self.reply += chunk

    def _config_write(self, slot: int, offset: int, value: int) -> None:
        self._command(b"outl 0xcf8 %#x\n" % (0x80000000 | slot << 11 | offset))
        self._command(b"outl 0xcfc %#x\n" % value)

    def _map_bars(self) -> None:
        for i in range(self.nics):
            self._config_write(FIRST_SLOT + i, 0x10, BAR_BASE + i * BAR_STEP)
            self._config_write(FIRST_SLOT + i, 0x04, 0x7)

    def read(self, nic: int, register: int) -> int:
        return int(self._command(b"readl %#x\n" % (BAR_BASE + nic * BAR_STEP + register)), 16) & 0xFFFFFFFF

    def writer(self, nic: int) -> Callable[[int, int], object]:
        base, command = BAR_BASE + nic * BAR_STEP, self._command
        return lambda register, value: command(b"writel %#x %#x\n" % (base + register, value))

    def clock(self) -> int:
        """Of the QEMU process, whose CPU is halted. On its CPU this reads while it sleeps, so the value is exact."""
        return time.clock_gettime_ns(self.cpu_clock)

    def settle(self) -> None:
        """QEMU takes no frame for a second of virtual time after a write to RCTL; only -accel qtest has a clock to step."""
        if self.accel == "qtest":
            self._command(b"clock_step 1050000000\n")
        else:
            time.sleep(1.05)

    def turn(self) -> None:
        """It does."""

    def hold(self) -> None:
        """Stop the process."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def run(self, done: Callable[[], object]) -> int:
        """Let it go on until `done` and asleep; ns of CPU time."""
        assert self.process is not None
        end = time.monotonic() + 30
        start = self.clock()
        self.process.send_signal(signal.SIGCONT)
        while not done():
            time.sleep(0.0005)
            if time.monotonic() > end:
                raise CheckError("frames got lost")
        time.sleep(0.001)
        return self.clock() - start

    def delivered(self) -> None:
        """A port without a peer counts nothing."""
