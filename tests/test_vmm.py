"""examples/vmm: the demo end to end on both CPUs, and the parts of the board that firmware does not try out."""

import importlib
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

VMM = Path(__file__).resolve().parent.parent / "examples" / "vmm"
CPUS = ["unicorn", pytest.param("kvm", marks=[pytest.mark.kvm, pytest.mark.slow])]


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(VMM)
    return importlib.import_module("machine")


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(VMM)
    return importlib.import_module("demo")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The wall clock of the board, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Children that are started now end on SIGINT, also when the test run itself ignores it, as a background job does: a signal that is
    handled here has its default action after exec, one that is ignored stays ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# ------------------------------------------------------------------------------------------------------------- the whole machine


def run_demo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", VMM / "demo.py", *arguments], capture_output=True, text=True, timeout=400)


@pytest.mark.tshark
@pytest.mark.parametrize("cpu", CPUS)
def test_the_guest_boots_and_downloads(cpu: str, tmp_path: Path) -> None:
    pcap = tmp_path / "a, b.pcapng"
    done = run_demo("--cpu", cpu, "--size", "1M", "--pcap", pcap)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    table = dict(re.findall(r"^(\S(?:.{20}))\s*(\S.*)$", done.stdout, re.M))
    table = {name.strip(): value for name, value in table.items()}
    assert table["lease"] == "10.0.2.15/255.255.255.0 gateway 10.0.2.2 dns 10.0.2.3"
    assert re.fullmatch(r"1048576 bytes at 0x[0-9a-f]+, SHA-256 as served", table["image"])
    assert table["dropped"] == "0"
    received, sent = (int(table[way].split()[0]) for way in ("to the guest", "from the guest"))
    assert received > 1048576 // 1460
    assert sent > 20
    seen = subprocess.run(["tshark", "-n", "-r", pcap, "-T", "fields", "-e", "frame.number"], capture_output=True, text=True, check=True)
    assert len(seen.stdout.split()) == received + sent
    assert [line for line in seen.stderr.splitlines() if "Running as user" not in line] == []


@pytest.mark.usefixtures("interruptible")
def test_control_c_ends_it_cleanly(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", VMM / "demo.py", "--pcap", tmp_path / "demo.pcapng"]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as run:
        assert run.stdout is not None
        while "DHCP" not in run.stdout.readline():
            assert run.poll() is None
        run.send_signal(signal.SIGINT)
        _, complaints = run.communicate(timeout=60)
    assert complaints == "demo: interrupted\n"
    assert run.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["demo.pcapng"]


@pytest.mark.parametrize(("file", "package"), [("BIOS", "seabios"), ("ROM", "ipxe-qemu")])
def test_missing_firmware_is_called_by_its_package(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: str, package: str
) -> None:
    monkeypatch.setattr(demo, file, Path("/nowhere/image"))
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    assert demo.main() == 1
    assert capsys.readouterr().err == f"demo: /nowhere/image is missing: apt install {package}\n"


def test_missing_unicorn_is_called_by_its_name(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "cpu_unicorn", raising=False)
    monkeypatch.setitem(sys.modules, "unicorn", None)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--size", "1M"])
    assert demo.main() == 1
    assert capsys.readouterr().err == "demo: unicorn is missing: pip install unicorn, or apt install python3-unicorn\n"


# --------------------------------------------------------------------------------------------------------------------- interrupts

# Real mode, at F000:0000: sets up both 8259s with line 11 level-triggered, prints R, and sleeps. Its handler prints I and acknowledges at
# port 0x99, where the device lowers its pin, and at both 8259s.
GUEST = bytes.fromhex(
    "fa 31c0 8ed8 8ed0 bc0070"  # cli; DS = SS = 0, SP = 7000
    "c706cc016000 c706ce0100f0"  # vector 73: F000:0060
    "b011 e620 e6a0 b008 e621 b070 e6a1 b004 e621 b002 e6a1 b001 e621 e6a1"  # ICW1 to ICW4
    "b0fb e621 b0f7 e6a1 bad104 b008 ee"  # masks, ELCR
    "baf803 b052 ee fb f4 ebfc"  # R; sti; hlt, again and again
).ljust(0x60, b"\x90") + bytes.fromhex("50 52 baf803 b049 ee e699 b020 e6a0 e620 5a 58 cf")
BIOS = bytes(0x10000) + GUEST.ljust(0xFFF0, b"\0") + bytes.fromhex("ea 0000 00f0").ljust(16, b"\0")

INTERRUPT_TEST = """
import importlib, sys, threading
from machine import Machine, Region
cpu, said, word = sys.argv[1], bytearray(), threading.Semaphore(0)
back_end = getattr(importlib.import_module("cpu_" + cpu), cpu.title() + "Cpu")
machine = Machine(32 << 20, sys.stdin.buffer.read(), back_end, lambda byte: (said.append(byte), word.release()))
lowered = threading.Semaphore(0)
machine.ports.add(Region(0x99, 1, write=lambda *_: (machine.cpu.set_irq(11, 0), lowered.release())))
vcpu = threading.Thread(target=machine.cpu.run)
vcpu.start()
ok = word.acquire(timeout=60)
for _ in range(5):
    machine.cpu.set_irq(11, 1)
    ok = ok and word.acquire(timeout=60) and lowered.acquire(timeout=60)
machine.cpu.stop()
vcpu.join()
print(ok, said.decode())
"""


@pytest.mark.parametrize("cpu", ["unicorn", pytest.param("kvm", marks=pytest.mark.kvm)])
def test_a_level_triggered_interrupt_from_another_thread_wakes_a_halted_guest_once(cpu: str) -> None:
    path = os.pathsep.join([str(VMM), *filter(None, sys.path)])
    command = [sys.executable, "-W", "error", "-c", INTERRUPT_TEST, cpu]
    done = subprocess.run(command, input=BIOS, capture_output=True, env=os.environ | {"PYTHONPATH": path}, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"True RIIIII\n", b"")


def controller(board: ModuleType) -> Any:
    """Both 8259s as a BIOS sets them up, all lines unmasked: (controller, ports)."""
    ports = board.Space()
    pics = importlib.import_module("legacy").InterruptController(ports)
    for port, words in (0x20, (0x11, 0x08, 0x04, 0x01)), (0xA0, (0x11, 0x70, 0x02, 0x01)):
        for offset, word in zip((0, 1, 1, 1), words, strict=True):
            ports.write(port + offset, 1, word)
        ports.write(port + 1, 1, 0)
    return pics, ports


def test_the_first_8259_has_priority_and_one_handler_runs_at_a_time(board: ModuleType) -> None:
    pics, ports = controller(board)
    for line in 4, 12, 1:
        pics.set_line(line, 1)
    assert (pics.take(), pics.take()) == (0x09, None)
    ports.write(0x20, 1, 0x20)
    assert (pics.take(), pics.take()) == (0x74, None)  # the second chip stands in line 2's place
    ports.write(0xA0, 1, 0x20)
    assert pics.take() is None
    ports.write(0x20, 1, 0x62)  # a specific end of interrupt, of line 2
    assert pics.take() == 0x0C


def test_an_edge_is_taken_once_and_a_level_as_long_as_it_lasts(board: ModuleType) -> None:
    pics, ports = controller(board)
    pics.set_line(4, 1)
    pics.set_line(11, 1)
    taken = []
    for _ in range(4):
        taken.append(pics.take())
        ports.write(0xA0, 1, 0x20)
        ports.write(0x20, 1, 0x20)
        if len(taken) == 2:
            pics.set_line(11, 0)
    assert taken == [0x73, 0x73, 0x0C, None]


def test_masked_lines_wait(board: ModuleType) -> None:
    pics, ports = controller(board)
    ports.write(0x21, 1, 1 << 2)
    pics.set_line(12, 1)
    assert (pics.take(), ports.read(0x21, 1), ports.read(0xA1, 1)) == (None, 4, 0)
    ports.write(0x21, 1, 0)
    assert pics.take() == 0x74


def test_the_timer_drops_the_rounds_nobody_looked_at(board: ModuleType, clock: list[float]) -> None:
    pics, ports = controller(board)
    timer = importlib.import_module("legacy").Timer(ports, pics)
    for port, value in (0x43, 0x34), (0x40, 0x9C), (0x40, 0x2E):  # mode 2, 11932: about 100 Hz
        ports.write(port, 1, value)
    assert timer.advance() == pytest.approx(0.01, rel=0.001)
    assert pics.take() is None
    clock[0] += 0.0351
    assert timer.advance() == pytest.approx(0.0049, rel=0.01)
    assert pics.take() == 0x08
    ports.write(0x20, 1, 0x20)
    timer.advance()
    assert pics.take() is None


def test_port_61_shows_when_channel_2_has_counted_down(board: ModuleType, clock: list[float]) -> None:
    pics, ports = controller(board)
    importlib.import_module("legacy").Timer(ports, pics)
    for port, value in (0x43, 0xB0), (0x42, 0xA9), (0x42, 0x04):  # mode 0, 1193: a millisecond
        ports.write(port, 1, value)
    clock[0] += 0.0009
    assert not ports.read(0x61, 1) & 0x20
    clock[0] += 0.0002
    assert ports.read(0x61, 1) & 0x20


# ---------------------------------------------------------------------------------------------------------------------- the board


class Nic:
    """As much of a NIC as a slot needs: windows wherever the test wants them."""

    rom = b"\x55\xaa" + bytes(2046)
    bars = ((0x20000, "mem"), (64, "io"))

    def __init__(self) -> None:
        self.where: dict[int | str, int | None] = {}
        self.log: list[tuple[object, ...]] = []

    def cfg_read(self, offset: int, size: int) -> int:
        return offset << 8 | size

    def cfg_write(self, offset: int, size: int, value: int) -> None:
        self.log.append((offset, size, value))

    def bar_address(self, bar: int) -> int | None:
        return self.where.get(bar)

    def rom_address(self) -> int | None:
        return self.where.get("rom")

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        return 0x1_0000_0000 | bar << 16 | offset

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        self.log.append((bar, offset, size, value))


@pytest.fixture
def machine(board: ModuleType) -> Any:
    """A board on which no CPU runs, so its memory space is a plain one."""
    return board.Machine(64 << 20, BIOS, board.Cpu, lambda byte: None)


@pytest.fixture
def nic(machine: Any) -> Nic:
    nic = Nic()
    machine.plug(nic)
    return nic


def select(machine: Any, slot: int, register: int, bus: int = 0, function: int = 0, enable: int = 1) -> None:
    machine.ports.write(0xCF8, 4, enable << 31 | bus << 16 | slot << 11 | function << 8 | register)


def test_configuration_cycles_reach_the_selected_function(machine: Any, nic: Nic) -> None:
    select(machine, 0, 0)
    assert machine.ports.read(0xCFC, 4) == 0x1237_8086
    assert machine.ports.read(0xCFE, 2) == 0x1237
    select(machine, 3, 0x10)
    assert machine.ports.read(0xCFE, 2) == 0x1202
    machine.ports.write(0xCFD, 1, 0xAB)
    assert nic.log == [(0x11, 1, 0xAB)]


@pytest.mark.parametrize("where", [{"slot": 4}, {"slot": 3, "bus": 1}, {"slot": 3, "function": 1}, {"slot": 3, "enable": 0}])
def test_where_no_function_is_reads_give_all_ones(machine: Any, nic: Nic, where: dict[str, int]) -> None:
    select(machine, register=0, **where)
    assert machine.ports.read(0xCFC, 4) == 0xFFFF_FFFF
    machine.ports.write(0xCFC, 4, 0)
    assert nic.log == []


def test_only_a_whole_write_changes_the_address_register(machine: Any) -> None:
    select(machine, 3, 0x3C)
    machine.ports.write(0xCF8, 1, 0x10)
    machine.ports.write(0xCF9, 1, 0x06)
    assert machine.ports.read(0xCF8, 4) == 0x8000_183C


def test_the_windows_of_a_nic_follow_its_configuration(machine: Any, nic: Nic) -> None:
    def configure(**where: int | None) -> None:
        nic.where = {"rom": where.get("rom"), 0: where.get("mem"), 1: where.get("io")}
        select(machine, 3, 4)
        machine.ports.write(0xCFC, 2, 7)

    configure(mem=0xFEBC0000, io=0xC000, rom=0xFEBE0000)
    assert machine.cpu.read(0xFEBC00C0, 4) == 0x0000_00C0  # cut to the size of the access
    assert machine.ports.read(0xC004, 4) == 0x0001_0004
    configure(mem=0xE0000000)
    machine.cpu.write(0xFEBC3818, 4, 1)
    machine.cpu.write(0xE0003818, 4, 2)
    assert nic.log[-1] == (0, 0x3818, 4, 2)
    assert machine.cpu.read(0xFEBC00C0, 4) == machine.ports.read(0xC004, 4) == 0xFFFF_FFFF


def test_the_board_tells_the_firmware_its_memory_and_options(machine: Any) -> None:
    def cmos(cell: int) -> int:
        machine.ports.write(0x70, 1, 0x80 | cell)
        return int(machine.ports.read(0x71, 1))

    def fw_cfg(key: int, length: int) -> bytes:
        machine.ports.write(0x510, 2, key)
        return bytes(machine.ports.read(0x511, 1) for _ in range(length))

    assert (cmos(0x34) | cmos(0x35) << 8) << 16 == (64 - 16) << 20
    assert fw_cfg(0, 4) == b"QEMU"
    files = {}
    count, *_ = struct.unpack(">I", fw_cfg(0x19, 4))
    for entry in struct.iter_unpack(">IHH56s", fw_cfg(0x19, 4 + 64 * count)[4:]):
        files[entry[3].rstrip(b"\0").decode()] = fw_cfg(entry[1], entry[0])
    assert files == {"etc/sercon-port": struct.pack("<Q", 0x3F8), "etc/show-boot-menu": bytes(8)}
    assert fw_cfg(0x7F, 2) == b"\0\0"


def test_the_serial_port_prints_and_takes_keys(board: ModuleType) -> None:
    printed = bytearray()
    serial = board.Serial(printed.append)
    for offset, value in (3, 0x80), (0, 1), (1, 0), (3, 3), (0, 0x41), (1, 2):  # the divisor is not printed
        serial.write(offset, 1, value)
    assert printed == b"A"
    assert (serial.read(2, 1), serial.read(5, 1)) == (2, 0x60)
    serial.keys += b"\r"
    assert (serial.read(5, 1), serial.read(0, 1), serial.read(5, 1)) == (0x61, 0x0D, 0x60)


def test_the_bios_clock_is_kept_on_wall_clock_time_but_never_set_back(board: ModuleType, clock: list[float]) -> None:
    machine = board.Machine(64 << 20, BIOS, board.Cpu, lambda byte: None)

    def ticks(set_to: int | None = None) -> int:
        if set_to is not None:
            machine.ram[0x46C:0x470] = struct.pack("<I", set_to)
        machine.keep_bios_clock()
        return int(struct.unpack("<I", machine.ram[0x46C:0x470])[0])

    assert ticks(set_to=1_000_000) == 1_000_000  # the guest sets it
    clock[0] += 1
    assert ticks() == 1_000_018
    assert ticks(set_to=1_000_019) == 1_000_019  # a tick of the guest's own
    clock[0] += 1
    assert ticks() == ticks() == 1_000_037
    assert ticks(set_to=0) == 0  # midnight
    clock[0] += 1
    assert ticks() == 18
