"""bench/peer.py does the work it claims, on qnet and on a real QEMU, and notices when it is not done."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from peer import CASES
from peer_cases import Case
from peer_driver import SLOT, TDT, TSO_BUFFERS, TX_BUFFERS, CheckError, Shape, checksums_right, rx_buffers, tcp_frame
from peer_floor import FloorJob, build
from peer_qnet import Qnet

PEER = Path(__file__).resolve().parent.parent / "bench" / "peer.py"
QUICK = ["--rounds", "1", "--repeats", "1", "--target-ms", "1"]


def peer(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(PEER), *args], capture_output=True, text=True)


def test_cases_are_those_of_the_plan() -> None:
    names = [f"{case}.{size}" for case in ("a1", "a1r", "b1", "b1r", "b2", "c1") for size in (60, 1514)] + ["c3", "c5"]
    names += ["d1.1514", "d2.1514", "d3.1514", "d4.1400", "d5.1400", "e1.60", "e1.1514", "e2", "e3.60", "e3.1514", "e5"]
    assert [case.name for case in CASES] == names


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=[pytest.mark.root] if case.name[0] in "de" else []) for case in CASES]
)
def test_qnet_does_the_work(case: Case) -> None:
    """Setting up compares every frame; finish() compares the counters after another kick."""
    job = case.job(Qnet, case.size, min(case.ring, 256))
    assert job.idle() > 0
    assert job.kick() > 0
    job.finish()


@pytest.mark.qemu
def test_side_by_side_with_qemu(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    run = peer(*QUICK, "--only", "a1r.60,b1r.1514,c3", "--json", str(out))
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    cases = json.loads(out.read_text())["cases"]
    assert [case["case"] for case in cases] == ["a1r.60", "b1r.1514", "c3"]
    for case in cases:
        assert len(case["qemu_all_ns"]) == len(case["qnet_all_ns"]) == 1
        assert case["ratio"] == pytest.approx(case["qemu_ns"] / case["qnet_ns"])
        assert f"\n{case['case']} " in run.stdout
    assert run.stdout.startswith("QEMU ")


@pytest.mark.root
@pytest.mark.qemu
def test_host_netdevs_side_by_side_with_qemu(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    run = peer(*QUICK, "--only", "d1,d2,d3,d4,d5,e1.60,e2,e3.60,e5", "--json", str(out))
    assert run.returncode == 0, run.stderr
    for case in json.loads(out.read_text())["cases"]:
        assert min(case["qemu_all_ns"] + case["qnet_all_ns"] + case["floor_all_ns"]) > 0


def test_without_qemu_it_says_what_to_install() -> None:
    run = peer(*QUICK, "--qemu", "no-such-qemu", "--only", "a1r.60")
    assert run.returncode == 2
    assert "Debian package qemu-system-x86" in run.stderr


def test_only_qnet_needs_no_qemu_and_fills_in_the_table(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench-peer: begin -->\nold\n<!-- bench-peer: end -->\nafter\n")
    run = peer(*QUICK, "--qemu", "no-such-qemu", "--only-qnet", "--only", "a1r.60", "--update", str(page))
    assert run.returncode == 0, run.stderr
    text = page.read_text()
    assert text.startswith("before\n<!-- bench-peer: begin -->\n")
    assert text.endswith("\n<!-- bench-peer: end -->\nafter\n")
    assert "| a1r.60 |" in text
    assert "old" not in text


@pytest.mark.parametrize(
    ("args", "text"),
    [(["--only", "z9"], "no case is called 'z9'"), (["--rounds", "0"], "are positive")],
)
def test_wrong_arguments_are_refused(args: list[str], text: str) -> None:
    run = peer(*args)
    assert run.returncode == 2
    assert text in run.stderr


class Faulty(Qnet):
    """A system that is not quite right, once it is set up."""

    flaw = ""

    def writer(self, nic: int) -> Callable[[int, int], object]:
        write = super().writer(nic)

        def wrong(register: int, value: int) -> None:
            write(register, value)
            at = {"payload": 100, "checksum": 50}.get(self.flaw)
            if register == TDT and at:
                self.mem[rx_buffers(1) + at] ^= 1

        return wrong

    def delivered(self) -> tuple[int, int] | None:
        got = super().delivered()
        if got and self.flaw == "frames" and got[0]:
            return got[0] - 1, got[1]
        if got and self.flaw == "bytes" and got[0]:
            return got[0], got[1] - 1
        return got


@pytest.mark.parametrize(
    ("name", "flaw", "text"),
    [
        ("b1.1514", "payload", "other bytes"),
        ("c1.1514", "checksum", "wrong checksum"),
        ("c5", "payload", "other payload"),
        ("a1.60", "frames", "frames, not"),
        ("c3", "bytes", "bytes, not"),
    ],
)
def test_wrong_work_is_noticed(name: str, flaw: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Faulty, "flaw", flaw)
    case = next(case for case in CASES if case.name == name)
    with pytest.raises(CheckError, match=text):
        case.job(Faulty, case.size, 256).finish()


class FaultyTap(Qnet):
    """It changes a byte: of what it sends first, or of what it received first."""

    def writer(self, nic: int) -> Callable[[int, int], object]:
        write = super().writer(nic)

        def wrong(register: int, value: int) -> None:
            if register == TDT:
                for base in (TX_BUFFERS, TSO_BUFFERS):
                    self.mem[base + 100] ^= 1
            write(register, value)

        return wrong

    def run(self, done: Callable[[], object]) -> int:
        took = super().run(done)
        self.mem[rx_buffers(0) + 100] ^= 1
        return took


@pytest.mark.root
@pytest.mark.parametrize(("name", "text"), [("e1.1514", "other frames"), ("e2", "payload"), ("e3.1514", "other bytes"), ("e5", "payload")])
def test_wrong_work_with_a_tap_is_noticed(name: str, text: str) -> None:
    case = next(case for case in CASES if case.name == name)
    with pytest.raises(CheckError, match=text):
        case.job(FaultyTap, case.size, 256).finish()


def test_the_floor_copies_what_it_claims() -> None:
    library = build()
    assert library is not None, "no C compiler"
    shape = Shape(TX_BUFFERS, SLOT, 3, buffers=3, length=3000, piece=1460, headers=54)
    floor = FloorJob(library, shape, receivers=2)
    assert floor.packets == 9
    source = bytes(k % 251 for k in range(shape.length))
    floor.mem[TX_BUFFERS + SLOT : TX_BUFFERS + SLOT + shape.length] = source
    floor.idle()
    assert floor.mem[rx_buffers(1) + 4 * SLOT] == 0
    floor.kick()
    for receiver in (1, 2):
        at = rx_buffers(receiver) + 3 * SLOT                    # frames 0 to 2 come from the first buffer
        parts = [floor.mem[at + k * SLOT : at + k * SLOT + n] for k, n in enumerate((1460, 1460, 80))]
        assert b"".join(parts) == source
    floor.finish()


def test_checksums_right_can_say_no() -> None:
    assert not checksums_right(tcp_frame(100, 1))
