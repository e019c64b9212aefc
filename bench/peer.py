#!/usr/bin/env python3
"""The same packet work on a real QEMU and on qnet in turn, in one run, side by side.

    make bench-peer                                     # all cases, three rounds
    make bench-peer ARGS="--rounds 1 --only a1,b1r"     # some of them, once
    make bench-peer ARGS="--only-qnet --only c3"        # while tuning

No guest runs. This script plays the driver: it writes descriptors and frames into guest memory and rings the doorbell once for a whole
ring; the CPU time of that register write, less that of one that has nothing to do, divided by the packets, is the price of a packet.
docs/performance.md says more. Needs QEMU (Debian package qemu-system-x86), and root for the cases with a tap or a socket.
"""

import argparse
import ctypes
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import peer_cases
import peer_sockets
import peer_tap
from peer_cases import Case, MakeSystem, Timed
from peer_floor import build
from peer_qemu import Qemu, QemuMissingError
from peer_qnet import Qnet

ROOT_CASES = [*peer_sockets.CASES, *peer_tap.CASES]
CASES = [*peer_cases.CASES, *ROOT_CASES]
BEGIN, END = "<!-- bench-peer: begin -->", "<!-- bench-peer: end -->"


def machine() -> str:
    with open("/proc/cpuinfo") as f:
        found = re.search(r"model name\s*:\s*(.*)", f.read())
    load = os.getloadavg()[0]
    name = found.group(1) if found else os.uname().machine
    return f"{name}, {os.cpu_count()} CPUs, Linux {os.uname().release}, Python {sys.version.split()[0]}, load {load:.1f}"


def run_round(
    case: Case, systems: dict[str, MakeSystem[Any]], floor: ctypes.CDLL | None, args: argparse.Namespace
) -> dict[str, list[float]]:
    """Set the case up on each system, which checks the work, and time it."""
    jobs: dict[str, Timed] = {}
    try:
        for label, make in systems.items():
            job = case.job(make, case.size, case.ring)
            jobs[label] = job
        if floor is not None:
            jobs["floor"] = job.floor(floor)
        values = peer_cases.measure([*jobs.values()], args.repeats, args.target_ms)
        return dict(zip(jobs, values, strict=True))
    finally:
        for ready in jobs.values():
            ready.finish()


class Result:
    """What all rounds of one case measured."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.qemu: list[float] = []
        self.qnet: list[float] = []
        self.floor: list[float] = []

    def add(self, values: dict[str, list[float]]) -> None:
        self.qnet += values["qnet"]
        self.qemu += values.get("qemu", [])
        self.floor += values.get("floor", [])

    @property
    def qnet_ns(self) -> float:
        return statistics.median(self.qnet)

    @property
    def qemu_ns(self) -> float | None:
        return statistics.median(self.qemu) if self.qemu else None

    @property
    def ratio(self) -> float | None:
        """How many times faster qnet is: the median over neighbours in time."""
        return statistics.median(a / b for a, b in zip(self.qemu, self.qnet, strict=True)) if self.qemu else None

    @property
    def least_ratio(self) -> float | None:
        """The same of the least disturbed measurements."""
        return min(self.qemu) / min(self.qnet) if self.qemu else None

    def row(self) -> list[str]:
        goal, ratio, least = self.case.goal, self.ratio, self.least_ratio
        met = ""
        if goal and ratio:
            met = "goal" if ratio >= goal.qemu / goal.goal else "done" if ratio >= goal.qemu / goal.done else "MISSED"
        return [
            self.case.name,
            self.case.text,
            f"{self.qemu_ns:.1f}" if self.qemu_ns else "-",
            f"{self.qnet_ns:.1f}",
            f"{statistics.median(self.floor):.1f}" if self.floor else "-",
            f"{ratio:.1f}" if ratio else "-",
            f"{least:.1f}" if least else "-",
            f"{goal.qemu / goal.goal:.1f}" if goal else "-",
            f"{goal.qemu / goal.done:.1f}" if goal else "-",
            met,
        ]

    def json(self) -> dict[str, Any]:
        goal = self.case.goal
        return {
            "case": self.case.name,
            "work": self.case.text,
            "frame_bytes": self.case.size,
            "ring": self.case.ring,
            "qemu_ns": self.qemu_ns,
            "qnet_ns": self.qnet_ns,
            "ratio": self.ratio,
            "least_ratio": self.least_ratio,
            "goal_ratio": goal.qemu / goal.goal if goal else None,
            "done_ratio": goal.qemu / goal.done if goal else None,
            "qemu_all_ns": self.qemu,
            "qnet_all_ns": self.qnet,
            "floor_all_ns": self.floor,
        }


HEADS = ["case", "work", "QEMU ns", "qnet ns", "floor", "ratio", "of least", "goal", "done at", "met"]


def text_table(rows: Iterable[Sequence[str]]) -> str:
    lines = [HEADS, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADS))]
    left = (0, 1, len(HEADS) - 1)
    out = ["  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))) for line in lines]
    return "\n".join(line.rstrip() for line in out)


def markdown_table(rows: Iterable[Sequence[str]]) -> str:
    lines = [HEADS, ["---", "---", *["---:"] * (len(HEADS) - 3), "---"], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def update(path: str, text: str) -> None:
    """Put `text` between the two marks in a file."""
    with open(path) as f:
        old = f.read()
    if BEGIN not in old or END not in old:
        raise SystemExit(f"{path}: no {BEGIN} … {END}")
    with open(path, "w") as f:
        f.write(f"{old.partition(BEGIN)[0]}{BEGIN}\n{text}\n{END}{old.partition(END)[2]}")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    ap = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    ap.add_argument("--rounds", type=int, default=3, help="how often to go through the list, with new systems each time (default 3)")
    ap.add_argument("--repeats", type=int, default=9, help="measurements a round and case (default 9)")
    ap.add_argument("--target-ms", type=float, default=20.0, help="time spent in kicks a measurement (default 20)")
    ap.add_argument("--only", help="comma list of cases: b, b1 or b1.60")
    ap.add_argument("--only-qnet", action="store_true", help="leave QEMU out")
    ap.add_argument("--list", action="store_true", help="name the cases and stop")
    ap.add_argument("--qemu", default="qemu-system-x86_64", help="the QEMU to compare with")
    ap.add_argument("--accel", choices=("qtest", "kvm", "tcg"), help="default: qtest if QEMU has it, else kvm, else tcg")
    ap.add_argument("--no-pin", action="store_true", help="do not keep QEMU and this script on one CPU")
    ap.add_argument("--json", metavar="FILE", help="write all measurements here")
    ap.add_argument("--update", metavar="FILE", help="put the table between the marks in this Markdown file")
    args = ap.parse_args(argv)
    if min(args.rounds, args.repeats) < 1 or args.target_ms <= 0:
        ap.error("--rounds, --repeats and --target-ms are positive")
    try:
        args.cases = peer_cases.pick(args.only, CASES)
    except ValueError as e:
        ap.error(str(e))
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    if os.geteuid() and not args.list:
        left_out = [case.name for case in args.cases if case in ROOT_CASES]
        args.cases = [case for case in args.cases if case not in ROOT_CASES]
        if left_out:
            print(f"left out, they need root: {', '.join(left_out)}", file=sys.stderr)
    if args.list:
        for case in args.cases:
            print(f"{case.name:9} {case.text}, {case.size} bytes")
        return 0
    systems: dict[str, Callable[[int, bool], Any]] = {"qnet": Qnet}
    header = [machine(), time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())]
    if not args.only_qnet:
        try:
            header.insert(0, "QEMU " + Qemu.find(args.qemu, args.accel))
        except QemuMissingError as e:
            print(e, file=sys.stderr)
            return 2
        systems = {"qemu": Qemu, **systems}
    floor = build()
    allowed = os.sched_getaffinity(0)
    if not args.no_pin:
        # A wake-up of another CPU costs many times the work between QEMU and its driver, above all in a virtual machine.
        Qemu.cpu = max(allowed)
        os.sched_setaffinity(0, {Qemu.cpu})
    results = {case.name: Result(case) for case in args.cases}
    try:
        for number in range(args.rounds):
            for case in args.cases:
                results[case.name].add(run_round(case, systems, floor, args))
                if sys.stderr.isatty():
                    print(f"\r\033[Kround {number + 1} of {args.rounds}: {case.name}", end="", file=sys.stderr, flush=True)
    finally:
        os.sched_setaffinity(0, allowed)
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    rows = [result.row() for result in results.values()]
    print("\n".join(header))
    print(text_table(rows))
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"machine": header, "cases": [result.json() for result in results.values()]}, f, indent=1)
    if args.update:
        update(args.update, "\n".join([*(line + "  " for line in header), "", markdown_table(rows)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
