"""What `make wheel` makes, as users meet it: listed, installed where there is no compiler, and run there."""

import re
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [p.relative_to(ROOT).as_posix() for p in (ROOT / "qnet").rglob("*") if p.suffix in (".py", ".pyi", ".pxd", ".typed")]
BUILT = [p.relative_to(ROOT).with_suffix("").as_posix() for p in (ROOT / "qnet").rglob("*.pyx")]
VERSIONS = ("3.11", "3.12", "3.13")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]       # the first one waits for `make wheel`


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest, pythons: dict[str, Path]) -> str:
    if request.param not in pythons:
        pytest.skip(f"no CPython {request.param} here")
    return str(request.param)


def test_the_python_of_this_run_gets_a_wheel(wheels: dict[str, Path], pythons: dict[str, Path]) -> None:
    assert wheels
    assert wheels.keys() == pythons.keys()


def test_wheel_holds_what_users_and_downstreams_need_and_no_more(version: str, wheels: dict[str, Path]) -> None:
    names = [n for n in zipfile.ZipFile(wheels[version]).namelist() if not n.endswith("/")]
    ours = [n for n in names if n.startswith("qnet/")]
    assert all(n.startswith(("qnet/", "qnet-")) for n in names)
    binaries = [n for n in ours if n.endswith(".so")]
    assert sorted(n.split(".")[0] for n in binaries) == sorted(BUILT)
    assert sorted(set(ours) - set(binaries)) == sorted(SOURCES)     # so: no generated C, no tests


def test_wheel_is_manylinux_for_glibc_2_17(version: str, wheels: dict[str, Path]) -> None:
    tag = re.search(r"manylinux_2_(\d+)_x86_64", wheels[version].name) or pytest.fail(wheels[version].name)
    assert int(tag[1]) <= 17


def test_sdist_has_the_sources_and_no_generated_c(sdist: Path) -> None:
    with tarfile.open(sdist) as tar:
        names = {n.partition("/")[2] for n in tar.getnames()}
    assert {f"{b}.pyx" for b in BUILT} <= names
    assert set(SOURCES) <= names
    generated = {n for n in names if n.endswith(".c")} - {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").glob("*.c")}
    assert not generated


def test_readme_example_runs_without_a_compiler(
    version: str, bare_python: Callable[..., Path], examples: Callable[[Path], list[tuple[str, str | None]]], tmp_path: Path
) -> None:
    code, printed = examples(ROOT / "README.md")[0]
    run = [bare_python(version), "-W", "error", "-c", code]
    done = subprocess.run(run, env={"PATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == printed
