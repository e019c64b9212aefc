"""What the benches share: `loop`, a network that nothing moves but the bench, and `cost`, which times work and tells what one of its
items takes. `make bench` prints the times; a plain test run does the work once and checks its counts."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from qnet._client import Context, NetClient, live
from qnet._loop import Loop, VirtualClock

BUDGET_NS = 300_000_000             # of timed work a bench
ROWS = pytest.StashKey[list[tuple[str, float, float, str]]]()

Work = Callable[[], object]
Client = TypeVar("Client", bound=NetClient)


def nothing() -> None:
    pass


def median_ns(work: Work, times: int) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter_ns()
        work()
        taken.append(time.perf_counter_ns() - start)
    return statistics.median(taken)


class Cost:
    def __init__(self, benchmark: Any, config: pytest.Config) -> None:
        self.benchmark, self.config = benchmark, config

    def __call__(
        self,
        case: str,
        work: Work,
        items: int,
        *,
        still: Context | None,
        prepare: Work = nothing,
        idle: Work = nothing,
        per: str = "packet",
    ) -> int:
        """Time `work`, which handles `items` each time, after `prepare`, which is not timed; `idle` is what the same entry costs with
        nothing to do. `still`: a network in which no queue node may be allocated meanwhile. Returns how often the work was done."""
        done = 0

        def ready() -> None:
            nonlocal done
            prepare()
            done += 1

        rounds, base = 1, 0.0
        if self.benchmark.enabled:
            ready()
            took = median_ns(work, 1)
            rounds = round(min(2000, max(10, BUDGET_NS / took)))
            base = median_ns(idle, 1000)
        before = still.allocations if still else 0
        self.benchmark.pedantic(work, setup=ready, rounds=rounds, warmup_rounds=2)
        if still:
            assert still.allocations == before, "queue nodes were allocated"
        if self.benchmark.enabled:
            stats = self.benchmark.stats.stats
            median, least = ((seconds * 1e9 - base) / items for seconds in (stats.median, stats.min))
            self.benchmark.extra_info[f"ns_per_{per}"] = median
            self.benchmark.extra_info["items"] = items
            self.config.stash.setdefault(ROWS, []).append((case, median, least, per))
        return done


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No client outlives its bench, whose work the benchmark fixture holds on to for a while."""
    before = live()
    yield
    gc.collect()
    assert live() == before, f"{live() - before} clients left"


@pytest.fixture
def cost(benchmark: Any, pytestconfig: pytest.Config) -> Cost:
    return Cost(benchmark, pytestconfig)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(VirtualClock())
    yield loop
    loop.close()


@pytest.fixture
def keep() -> Iterator[Callable[[Client], Client]]:
    """keep(client) is closed when the bench is over: two peers refer to each other."""
    clients: list[NetClient] = []

    def keep(client: Client) -> Client:
        clients.append(client)
        return client

    yield keep
    while clients:
        clients.pop().close()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    terminalreporter.section("cost of one item, ns")
    width = max(len(row[0]) for row in rows)
    terminalreporter.write_line(f"{'case':{width}}  {'median':>9}  {'least':>9}  per")
    for case, median, least, per in rows:
        terminalreporter.write_line(f"{case:{width}}  {median:9.1f}  {least:9.1f}  {per}")
