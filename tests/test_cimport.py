"""The packet contract from outside: a backend compiled against the installed wheel, plugged into a network and driven by a NIC."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent

# The control-plane half of a backend: its options and how to open it; the table row makes netdev_add know it.
RUN = """
import sys
from dataclasses import dataclass
from types import ModuleType

import qnet
from cimport_ext import Echo
from qnet import Net, VirtualClock
from qnet.kinds import NET_CLIENT_INIT, Backend
from qnet.testing import E1000Guest

@dataclass(frozen=True, kw_only=True)
class Options:
    pass

sys.modules["echo"] = room = ModuleType("echo")
room.Options = Options
room.open = lambda net, name, options: [Echo(net.loop, name)]
NET_CLIENT_INIT["echo"] = Backend("echo", "sends every frame back")

ram = bytearray(4 << 20)
with Net(clock=VirtualClock(), memory=ram) as net:
    echo = net.netdev_add("echo,id=e0")
    nic = net.device_add("e1000,netdev=e0")
    guest = E1000Guest(nic, ram)
    guest.init(promiscuous=True)
    frame = bytes(range(12)) + b"\\x88\\xb5" + bytes(60)
    guest.send([frame])
    print(guest.receive() == [frame[6:12] + frame[:6] + frame[12:]], echo.seen, echo.stats()["drops"])
    guest.close()
print(qnet.__file__)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_backend_compiled_against_the_wheel(bare_python: Callable[..., Path], tmp_path: Path) -> None:
    python = bare_python(f"{sys.version_info.major}.{sys.version_info.minor}", "Cython>=3.1,<4", "setuptools>=77")
    shutil.copy(HERE / "cimport_ext.pyx", tmp_path)

    def run(*args: str) -> str:
        done = subprocess.run([python, *args], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        assert done.returncode == 0, done.stdout
        return done.stdout

    run("-m", "Cython.Build.Cythonize", "-i", "cimport_ext.pyx")
    *printed, used = run("-W", "error", "-c", RUN).splitlines()
    assert printed == ["True (1, 74) {}"]
    assert python.parent.parent in Path(used).parents, "this ran on the source tree, not on the wheel"
