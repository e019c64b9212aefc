"""Boots unmodified SeaBIOS and iPXE on qnet's e1000. The guest gets a lease by DHCP and boot.ipxe by TFTP from the `user` netdev, then an
image of random bytes by HTTP from this host's loopback. Exit status 0: it finished, and the image in its memory has the right SHA-256.
"""

import argparse
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

from machine import Machine

import qnet
from qnet.models.e1000 import E1000

BIOS, ROM = Path("/usr/share/seabios/bios-256k.bin"), Path("/usr/lib/ipxe/qemu/pxe-e1000.rom")
STAGES = {  # what the guest is busy with -> what it prints on the serial console when that is over
    "SeaBIOS starts": b"Booting from ROM...",
    "iPXE unpacks itself": b"starting execution...ok",
    "iPXE starts": b"Press Ctrl-B for the iPXE command line...",
    "DHCP": b"Filename: ",
    "boot script by TFTP": b"QNET lease ",
    "image by HTTP": b"QNET fetched",
    "last words": b"QNET done",
    "done": b"\0",
}


class Progress:
    """Follows the guest by what it prints, and shows where it is: on a terminal in one line rewritten, elsewhere a line now and then."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.ends = [time.monotonic()]  # power on, then the end of each stage
        self.reactions: dict[bytes, Callable[[], None]] = {}
        self._shown = "", self.ends[0], 0  # stage, time and frames of the last line

    @property
    def stage(self) -> str:
        return list(STAGES)[len(self.ends) - 1]

    def on_serial(self, byte: int) -> None:
        self.text.append(byte)
        if self.text.endswith(STAGES[self.stage]):
            self.ends.append(time.monotonic())
        for words, react in self.reactions.items():
            if self.text.endswith(words):
                react()

    def show(self, nic: dict[str, Any]) -> None:
        terminal, now, stage = sys.stdout.isatty(), time.monotonic(), self.stage
        shown_stage, then, frames_then = self._shown
        if stage != shown_stage or now - then > (0.1 if terminal else 1):
            frames = nic["rx_packets"] + nic["tx_packets"]
            rate = (frames - frames_then) / max(now - then, 0.001)
            line = f"{now - self.ends[0]:5.1f} s  {stage:20}{nic['rx_bytes'] / 2**20:6.1f} MiB {rate:8,.0f} frames/s"
            print(f"\r{line}\x1b[K" if terminal else line, end="" if terminal else "\n", flush=True)
            self._shown = stage, now, frames


class ImageHandler(SimpleHTTPRequestHandler):
    """http.server's, but straight from file to socket in the kernel, and silent."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        with suppress(ConnectionError):  # the guest may be switched off meanwhile
            self.connection.sendfile(source)

    def log_message(self, *args: object) -> None:
        pass


def run_guest(machine: Machine, each_tick: Callable[[], None]) -> None:
    """Run the vCPU on a thread of its own, until the guest's last word, the time limit or Ctrl-C stops it."""
    deadline = time.monotonic() + 300
    with ThreadPoolExecutor(1) as pool:
        vcpu = pool.submit(machine.cpu.run)
        try:
            while not wait([vcpu], 0.04).done and time.monotonic() < deadline:
                machine.keep_bios_clock()
                each_tick()
        finally:
            machine.cpu.stop()
            print(end="\n" * sys.stdout.isatty())
        vcpu.result()


def boot(cpu: str, size: int, pcap: str, stack: ExitStack) -> bool:
    """The whole run; what is opened goes to `stack`. Did the guest get the image?"""
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qnet-demo-")))
    server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), partial(ImageHandler, directory=str(scratch))))
    stack.enter_context(ThreadPoolExecutor(1)).submit(server.serve_forever, 0.05)
    stack.callback(server.shutdown)
    image = os.urandom(size)
    (scratch / "image").write_bytes(image)
    (scratch / "boot.ipxe").write_text(Path(__file__).with_name("boot.ipxe").read_text().replace("PORT", str(server.server_port)))

    progress = Progress()
    back_end = getattr(import_module(f"cpu_{cpu}"), f"{cpu.title()}Cpu")
    machine = Machine((64 << 20) + (2 * size + 0xFFFFF & ~0xFFFFF), BIOS.read_bytes(), back_end, progress.on_serial)
    progress.reactions = {STAGES["last words"]: machine.cpu.stop, b"QNET failed": machine.cpu.stop}
    progress.reactions[STAGES["iPXE starts"]] = partial(machine.serial.keys.extend, b"\r")  # a key ends the wait

    net = stack.enter_context(qnet.Net())
    net.netdev_add(f"user,id=n0,tftp={scratch},bootfile=boot.ipxe")
    net.object_add(f"filter-dump,id=d0,netdev=n0,file={pcap.replace(',', ',,')}")
    nic = net.device_add(f"e1000,netdev=n0,id=nic0,romfile={ROM}", memory=machine.ram, irq=machine.set_intx)
    assert isinstance(nic, E1000)
    machine.plug(nic)
    net.start()
    run_guest(machine, lambda: progress.show(nic.stats()))

    at = machine.ram.find(image)
    right = at >= 0 and hashlib.sha256(machine.ram[at : at + size]).digest() == hashlib.sha256((scratch / "image").read_bytes()).digest()
    guest = nic.stats()
    drops = [f"{count} {reason} at {client['name']}" for client in net.stats() for reason, count in client["drops"].items()]
    table = {stage: f"{end - begin:.2f} s" for stage, begin, end in zip(STAGES, progress.ends, progress.ends[1:], strict=False)} | {
        "all of it": f"{progress.ends[-1] - progress.ends[0]:.2f} s",
        "lease": progress.text.partition(b"QNET lease ")[2].partition(b"\r")[0].decode(),
        "image": f"{size} bytes at {at:#x}, SHA-256 as served" if right else "not in guest memory",
        "to the guest": f"{guest['rx_packets']} frames, {guest['rx_bytes']} bytes",
        "from the guest": f"{guest['tx_packets']} frames, {guest['tx_bytes']} bytes",
        "MMIO": "{} reads, {} writes".format(*nic.accesses),
        "interrupts": machine.interrupts,
        "dropped": ", ".join(drops) or "0",
        "capture": pcap,
    }
    print(*(f"{name:22}{value}" for name, value in table.items()), sep="\n")
    if progress.stage != "done":
        last = progress.text.decode(errors="replace").splitlines()[-5:]
        print(f"demo: the guest did not finish ({progress.stage}); its last words:", *last, sep="\n", file=sys.stderr)
    return right and progress.stage == "done"


def main() -> int:
    parser = argparse.ArgumentParser(description="Boot SeaBIOS and iPXE on qnet's e1000 and fetch a file over the user network.")
    parser.add_argument("--cpu", choices=("unicorn", "kvm"), default="unicorn")
    parser.add_argument("--size", default="16M", help="of the image, in MiB; default %(default)s")
    parser.add_argument("--pcap", default="demo.pcapng", help="where the capture goes; default %(default)s")
    options = parser.parse_args()
    try:
        for file, package in (BIOS, "seabios"), (ROM, "ipxe-qemu"):
            if not file.exists():
                raise FileNotFoundError(f"{file} is missing: apt install {package}")
        with ExitStack() as stack:
            return 0 if boot(options.cpu, int(options.size.rstrip("M")) << 20, options.pcap, stack) else 1
    except KeyboardInterrupt:
        problem = "interrupted"
    except ModuleNotFoundError as error:
        problem = f"{error.name} is missing: pip install {error.name}, or apt install python3-{error.name}"
    except (OSError, RuntimeError, qnet.Error) as error:
        problem = str(error)
    print(f"demo: {problem}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
