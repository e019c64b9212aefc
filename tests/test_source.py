"""The rules of the house that can be read off the source. ARCHITECTURE.md says why; exceptions stand here, each with its reason."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
QNET = ROOT / "qnet"

CYTHON = sorted(p for p in QNET.rglob("*.p[yx][xd]") if p.suffix in (".pyx", ".pxd"))
PYTHON = sorted(QNET.rglob("*.py"))
CSRC = sorted((ROOT / "csrc").iterdir())
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def rel(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(p) for p in (*CYTHON, *PYTHON)}

# ---------------------------------------------------------------------------------------------------------------- the ladder

# First match counts. Within a floor nothing knows its neighbour, except what GROUPS says.
FLOORS = [
    (r"qnet\.testing(\..*)?", 10),
    (r"qnet|qnet\.cli", 9),
    (r"qnet\.doors(\..*)?|qnet\.(aio|scapy)", 8),
    (r"qnet\.net", 7),
    (r"qnet\.(info|kinds)", 6),
    (r"qnet\.models\.(_vring|pci)", 4),
    (r"qnet\.(backends|filters|models)\._\w+|qnet\.(_announce|announce|rooms)", 5),
    (r"qnet\.(backends|filters|models)(\.\w+)?", 6),
    (r"qnet\._loop", 4),
    (r"qnet\._client", 3),
    (r"qnet\.(_fastpath|_host|sockaddr|spec)", 2),
    (r"qnet\.(_context|_eth|_iov|_sock|events|mac|options)", 1),
    (r"qnet\.errors", 0),
]
# Modules that are one thing in several files.
GROUPS = [
    r"qnet\.testing(\..*)?",
    r"qnet\.models\._e1000(_regs|_rings)?",
    r"qnet\.backends\._(connect|stream)",
    r"qnet\.backends\._(dgram|dgram_pack|l2tpv3)",
    r"qnet\.backends\._(slirp|slirp(fds|guard|lib|out)|libslirp|usernet|guestfwd)",
    r"qnet\.backends\._py(client|ring)",
]


def floor(module: str) -> int:
    for pattern, number in FLOORS:
        if re.fullmatch(pattern, module):
            return number
    raise AssertionError(f"{module} stands on no floor: give it one in FLOORS and in ARCHITECTURE.md")


def allowed(src: str, dst: str) -> bool:
    if floor(dst) < floor(src):
        return True
    return src == dst or any(re.fullmatch(g, src) and re.fullmatch(g, dst) for g in GROUPS)


def known(name: str, names: list[str]) -> Iterator[str]:
    """The modules that `from name import names` reads."""
    for n in names:
        if f"{name}.{n}" in MODULES:
            yield f"{name}.{n}"
        elif name in MODULES:
            yield name


def python_imports(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for a in node.names:
                yield from known(a.name, [""])
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written out from the root"
            yield from known(node.module or "", [a.name for a in node.names])


CIMPORT = re.compile(r"^[ \t]*(?:from\s+(qnet[\w.]*)\s+c?import\s*(\([^)]*\)|[^\n#]*)|c?import\s+(qnet[\w.]*))", re.M)


def cython_imports(text: str) -> Iterator[str]:
    for module, names, plain in CIMPORT.findall(text):
        yield from known(module or plain, re.findall(r"[\w*]+", names) or [""])


def edges() -> list[tuple[Path, str]]:
    out = []
    for p in PYTHON:
        out += [(p, dst) for dst in python_imports(p.read_text())]
    for p in CYTHON:
        out += [(p, dst) for dst in cython_imports(p.read_text())]
    return out


def test_imports_go_down_only() -> None:
    bad = {f"{rel(p)} imports {dst}" for p, dst in edges() if not allowed(module_of(p), dst)}
    assert not bad
    assert len(edges()) > 20, "the reader of import lines finds nothing"


@pytest.mark.parametrize(
    ("src", "line", "fine"),
    [
        ("qnet._fastpath", "from qnet._host cimport (GuestMem,\n    guest_map)", False),        # neighbours
        ("qnet._fastpath", "from qnet import _loop", False),                                  # up
        ("qnet.backends._hub", "from qnet.backends._slirp cimport x", False),
        ("qnet.backends._hub", "from qnet._fastpath cimport net_send", True),
        ("qnet.models._e1000", "cimport qnet._host", True),
    ],
)
def test_the_ladder_tells_down_from_up(src: str, line: str, fine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "MODULES", {*MODULES, "qnet.backends._slirp"})
    found = list(cython_imports(line))
    assert found
    assert all(allowed(src, dst) for dst in found) is fine


def test_csrc_knows_no_python_and_no_qnet_type() -> None:
    # those that are indented are declared by C headers
    types = {m for p in CYTHON if p.suffix == ".pxd" for m in re.findall(r"^cdef (?:struct|class|enum) (\w+)", p.read_text(), re.M)}
    for p in CSRC:
        text = p.read_text()
        assert "Python.h" not in text, rel(p)
        assert not (types & set(re.findall(r"\w+", re.sub(r"/\*.*?\*/", "", text, flags=re.S)))), rel(p)
        for header in re.findall(r'#include "([^"]+)"', text):
            assert (ROOT / "csrc" / header).exists(), f"{rel(p)} includes {header}"


# ------------------------------------------------------------------------------------------------------------------- budgets


@dataclass(frozen=True)
class Budget:
    pattern: str
    lines: int


BUDGETS = [
    Budget(r"qnet/_fastpath\.pxd", 200),                        # the packet contract is read in one sitting
    Budget(r"qnet/_(fastpath|loop|host)\.pyx", 800),            # the core
    Budget(r"qnet/models/_\w+\.pyx", 1200),                     # device models
    Budget(r"qnet/.*\.p[yx][xd]", 400),                         # leaves
    Budget(r"qnet/(net|options|cli)\.py", 800),
    Budget(r"qnet/.*\.py", 400),
    Budget(r"(tests|bench)/.*", 800),
    Budget(r"examples/.*", 400),
    Budget(r"csrc/.*", 500),
    Budget(r"setup\.py", 110),
]
OVER: dict[str, tuple[int, str]] = {
    "qnet/backends/_stream.pyx": (500, "one byte stream: both directions and the connection share one state"),
    "qnet/backends/_slirp.pyx": (480, "one foreign library: what it calls and what calls it share one state"),
}


def test_files_stay_within_their_budgets() -> None:
    bad = []
    files = [*CYTHON, *PYTHON, *CSRC, *TESTS, ROOT / "setup.py", *(ROOT / "bench").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    for p in files:
        lines = len(p.read_text().splitlines())
        limit = next(b.lines for b in BUDGETS if re.fullmatch(b.pattern, rel(p)))
        if rel(p) in OVER:
            assert lines > limit, f"{rel(p)} fits its budget of {limit} again: take it off the list"
            limit = OVER[rel(p)][0]
        if lines > limit:
            bad.append(f"{rel(p)}: {lines} lines, budget {limit}")
    assert not bad


def test_the_vmm_example_can_be_read_whole() -> None:
    assert sum(len(p.read_text().splitlines()) for p in (ROOT / "examples" / "vmm").rglob("*.py")) < 700


# -------------------------------------------------------------------------------------------------------------------- Cython


def code(text: str) -> str:
    """Without comments and docstrings."""
    return re.sub(r"#[^\n]*", "", re.sub(r'"""[\s\S]*?"""', "", text))


@pytest.mark.parametrize("path", CYTHON, ids=rel)
def test_no_textual_includes_or_conditional_compilation(path: Path) -> None:
    assert not re.search(r"^\s*(include\s+['\"]|DEF\s+\w|IF\s+[\w.]+.*:$)", code(path.read_text()), re.M)


# Where C calls Python with a network's lock held: only what cannot be otherwise.
WITH_GIL = {
    "qnet/_host.pyx": "guest memory given as callables, the one named exception",
}


def test_packet_code_never_takes_the_gil() -> None:
    users = {rel(p) for p in CYTHON if re.search(r"\bwith gil\b", code(p.read_text()))}
    assert users == set(WITH_GIL)


def tables() -> dict[str, list[str]]:
    """ops struct -> its slots, from the pxd files."""
    out = {}
    for p in CYTHON:
        for name, body in re.findall(r"^cdef struct (\w*Ops):\n((?:[ \t]+.*\n|\n)+)", p.read_text(), re.M):
            out[name] = re.findall(r"^\s+\w+ (?:\(\*(\w+)\)|(\w+)\s*(?:#|$))", body, re.M)
    return {name: [a or b for a, b in slots] for name, slots in out.items()}


def test_ops_tables_name_every_slot() -> None:
    """A slot left out is not NULL but whatever the stack held."""
    slots_of = tables()
    assert slots_of["NetClientOps"] == ["receive", "can_receive", "resume", "link_status_changed", "cleanup"]
    literals = 0
    for p in CYTHON:
        for name, body in re.findall(r"= (\w+Ops)\(\n([\s\S]*?)^\)", code(p.read_text()), re.M):
            literals += 1
            assert re.findall(r"^\s+(\w+)=", body, re.M) == slots_of[name], f"{rel(p)}: {name}"
    assert literals >= 2


def test_every_built_module_has_a_stub_and_is_built() -> None:
    built = re.findall(r'^    "(qnet[\w.]+)":', (ROOT / "setup.py").read_text(), re.M)
    sources = [p for p in CYTHON if p.suffix == ".pyx"]
    assert sorted(built) == sorted(module_of(p) for p in sources)
    assert not [rel(p) for p in sources if not p.with_suffix(".pyi").exists()]


def test_contract_opens_with_its_rules() -> None:
    head = (QNET / "_fastpath.pxd").read_text().split("\nfrom ")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    for word in ("consumed < n", "flow_control", "FIFO", "lock"):
        assert word in head


# ---------------------------------------------------------------------------------------------------------------------- Python


def test_return_codes_become_exceptions_at_one_door() -> None:
    bad = [rel(p) for p in (*CYTHON, *PYTHON) if p.name != "errors.py" and re.search(r"\braise \w*OSError\b", code(p.read_text()))]
    assert not bad


def test_scapy_and_unicorn_are_never_imported_by_the_package() -> None:
    users = {rel(p) for p in (*CYTHON, *PYTHON) if re.search(r"^\s*(import|from) (scapy|unicorn)\b", p.read_text(), re.M)}
    assert users <= {"qnet/scapy.py"}


def test_tests_are_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
