"""Extension table: module -> its .pyx and the C it links. Everything else is in pyproject.toml."""

import copy
import os
from glob import glob

import Cython.Compiler.Options
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

Cython.Compiler.Options.warning_errors = True

BPF = ["csrc/bpf.c"]
CSUM = ["csrc/csum.c"]
GSO = ["csrc/csum.c", "csrc/gso.c"]
FDIO = ["csrc/fdio.c"]
PCAP = ["csrc/fdio.c", "csrc/pcap.c"]

# module -> C sources beside the .pyx of the same name
MODULES: dict[str, list[str]] = {
    "qnet._announce": [],
    "qnet._client": [],
    "qnet._fastpath": GSO,
    "qnet._host": [],
    "qnet._loop": [],
    "qnet.backends._dgram": [],
    "qnet.backends._afxdp": [],
    "qnet.backends._dump": PCAP,
    "qnet.backends._hub": [],
    "qnet.backends._l2tpv3": [],
    "qnet.backends._netmap": [],
    "qnet.backends._pyclient": BPF,
    "qnet.backends._pyring": BPF,
    "qnet.backends._slirp": [*CSUM, "csrc/ipreass.c"],
    "qnet.backends._stream": FDIO,
    "qnet.backends._tap": ["csrc/tap.c"],
    "qnet.backends._vde": [],
    "qnet.filters._filters": PCAP,
    "qnet.models._e1000": [],
    "qnet.models._e1000_rings": GSO,
    "qnet.testing._frames": [],
    "qnet.testing._nodes": [],
    "qnet.testing._port": [],
    "qnet.testing._probes": [],
}

CFLAGS = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unused-function", "-fvisibility=hidden"]
CFLAGS += ["-include", "csrc/glibc217.h", "-O3"]
LDFLAGS = ["-Wl,-s"]
if os.environ.get("QNET_ASAN") == "1":                  # make asan
    LDFLAGS = ["-fsanitize=address,undefined"]
    CFLAGS += ["-O1", "-g", *LDFLAGS]


def extension(name: str, csrc: list[str]) -> Extension:
    return Extension(
        name,
        [name.replace(".", "/") + ".pyx", *csrc],
        include_dirs=["csrc"],
        depends=sorted(glob("csrc/*.h")),
        extra_compile_args=CFLAGS,
        extra_link_args=LDFLAGS,
    )


class BuildExt(build_ext):
    """Modules are compiled side by side; each has a directory for its objects, since several compile the same C files."""

    def build_extension(self, ext: Extension) -> None:
        job = copy.copy(self)
        job.build_temp = os.path.join(self.build_temp, ext.name)
        build_ext.build_extension(job, ext)


setup(
    cmdclass={"build_ext": BuildExt},
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
    ext_modules=cythonize(
        [extension(name, csrc) for name, csrc in MODULES.items()],
        build_dir="build/cython",
        nthreads=os.cpu_count() or 1,
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "embedsignature": True,
            "auto_pickle": False,
        },
    ),
)
