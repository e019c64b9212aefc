"""docs/many-hosts.md: its commands, run in two network namespaces that stand for two hosts."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "many-hosts.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!^## ).*\n)+)", PAGE, re.M))
BLOCK = re.compile(r"^```console\n(.*?)^```", re.M | re.S)
EXAMPLES = {title: found[0] for title, text in SECTIONS.items() if (found := BLOCK.findall(text))}
PREPARATION = BLOCK.findall(PAGE.partition("\n## ")[0])[0]

pytestmark = pytest.mark.root


def commands(block: str) -> list[tuple[str, list[str]]]:
    return [(line[0], shlex.split(line[3:])) for line in block.splitlines()]


@pytest.fixture
def hosts() -> Iterator[dict[str, str]]:
    """host of the page -> network namespace. What a killed run of the same process number left is removed first."""
    names = {host: f"qnet-{host}-{os.getpid()}" for host in "ab"}
    with ExitStack() as stack:
        for name in names.values():
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)
            subprocess.run(["ip", "netns", "add", name], check=True)
            stack.callback(subprocess.run, ["ip", "netns", "delete", name], check=True)
        a, b = names.values()
        subprocess.run(["ip", "-n", a, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b], check=True)
        for name, address in (a, "10.9.0.1/24"), (b, "10.9.0.2/24"):
            subprocess.run(["ip", "-n", name, "address", "add", address, "dev", "eth0"], check=True)
            for link in "lo", "eth0":
                subprocess.run(["ip", "-n", name, "link", "set", link, "up"], check=True)
        yield names


@pytest.mark.parametrize("title", EXAMPLES)
def test_the_commands_work_as_they_stand(hosts: dict[str, str], title: str) -> None:
    pings = 0
    with ExitStack() as stack:
        switches = []
        for host, command in commands(PREPARATION) + commands(EXAMPLES[title]):
            inside = ["ip", "netns", "exec", hosts[host], *command]
            if command[0] == "python":
                inside[4] = sys.executable
                run = stack.enter_context(subprocess.Popen(inside, cwd=ROOT, stdout=subprocess.PIPE, text=True))
                stack.callback(run.kill)
                assert run.stdout is not None
                assert run.stdout.readline(), f"{shlex.join(command)} ended"       # what it joins: it runs
                switches.append(run)
            else:
                done = subprocess.run(inside, capture_output=True, text=True, check=False, timeout=60)
                assert done.returncode == 0, f"{shlex.join(command)}: {done.stdout}{done.stderr}"
                pings += command[0] == "ping"
        assert (len(switches), pings) == (2, 1)
        for run in switches:
            run.send_signal(signal.SIGTERM)
            said, _ = run.communicate(timeout=60)
            assert run.returncode == 0
            carried = re.findall(r"^[\w-]+: (\d+) frames out, (\d+) in", said, re.M)
            assert len(carried) == 2
            assert all(int(count) >= 2 for counts in carried for count in counts), said      # the echo, there and back


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 3
