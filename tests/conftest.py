"""What every test is held to: nothing it opened is left over, and a tool it needs is there (in CI: or it fails)."""

import gc
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from qnet import _client

ROOT = Path(__file__).resolve().parent.parent

# Time is not what tests are about, and a machine may be slow.
settings.register_profile("qnet", deadline=None)
settings.load_profile("qnet")

NEEDS = {
    "root": (lambda: os.geteuid() == 0, "needs root"),
    "kvm": (lambda: os.access("/dev/kvm", os.R_OK | os.W_OK), "needs /dev/kvm"),
    "qemu": (lambda: shutil.which("qemu-system-x86_64") is not None, "needs qemu-system-x86_64"),
    "tshark": (lambda: shutil.which("tshark") is not None, "needs tshark"),
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, (there, why) in NEEDS.items():
        if item.get_closest_marker(marker) and not there():
            # A runner without /dev/kvm is no mistake of the runner's; a missing program is.
            if os.environ.get("CI") == "true" and marker != "kvm":
                pytest.fail(f"{why}; in CI that is an error")
            pytest.skip(why)


def pytest_collection_finish() -> None:
    """What was imported stays; without it in its way, a collection after each test costs nothing."""
    gc.collect()
    gc.freeze()


def open_fds() -> dict[str, str]:
    fds = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            fds[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue                            # the directory's own
    return fds


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Clients, threads and file descriptors are back to what they were once the test is over."""
    clients, fds, threads = _client.live(), open_fds(), set(threading.enumerate())
    yield
    gc.collect()
    left = {fd: what for fd, what in open_fds().items() if fds.get(fd) != what}
    running = {t.name for t in set(threading.enumerate()) - threads}
    assert _client.live() == clients, f"{_client.live() - clients} clients left"
    assert not running, f"threads left: {running}"
    assert not left, f"file descriptors left: {left}"


# ------------------------------------------------------------------------------------------- wheels, and environments with them


def run(*command: str | Path) -> str:
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "PYTHONPATH")}
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def pythons() -> dict[str, Path]:
    """version -> interpreter that wheels are made for."""
    lines = run(sys.executable, "tools/wheels.py", "--list").splitlines()
    return {version: Path(path) for version, path in (line.split("\t") for line in lines)}


@pytest.fixture(scope="session")
def wheels() -> dict[str, Path]:
    """version -> wheel, as `make wheel` leaves them."""
    run("make", "wheel")
    return {f"3.{m[1]}": p for p in (ROOT / "dist").glob("*.whl") if (m := re.search(r"-cp3(\d+)-", p.name))}


@pytest.fixture(scope="session")
def sdist(wheels: dict[str, Path]) -> Path:
    [path] = (ROOT / "dist").glob("*.tar.gz")
    return path


@pytest.fixture(scope="session")
def bare_python(
    wheels: dict[str, Path], pythons: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Interpreter of a new environment that holds qnet's wheel and what it depends on; more packages if named."""

    def make(version: str, *packages: str) -> Path:
        env = tmp_path_factory.mktemp(f"py{version}-")
        run(pythons[version], "-m", "venv", "--without-pip", env)
        python = env / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--only-binary", ":all:"]
        run(*pip, wheels[version], *packages)
        return python

    return make


@pytest.fixture(scope="session")
def examples() -> Callable[[Path], list[tuple[str, str | None]]]:
    """(code, what it prints if a text block follows) of each Python example of a page."""
    block = re.compile(r"^```python\n(.*?)^```\n(?:\s*^```text\n(.*?)^```$)?", re.M | re.S)
    return lambda page: [(code, printed or None) for code, printed in block.findall(page.read_text())]
