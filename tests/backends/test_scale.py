"""A thousand idle netdevs of one process: no CPU time, no wake-ups, under 64 MB in all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, resource, sys, threading, time
from qnet import Net

kinds = json.loads(sys.argv[1])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))
with Net() as net:
    for i in range(1000):
        kind = kinds[i % len(kinds)].format(i=i)
        net.netdev_add(f"{kind},id=n{i}")
        if i % 10 == 0 and not kind.startswith("hubport"):
            net.netdev_add(f"hubport,id=p{i},hubid=0,netdev=n{i}")       # some of them hear each other
    net.start()
    [thread] = [t for t in threading.enumerate() if t.name == "qnet"]
    clock = time.pthread_getcpuclockid(thread.ident)
    measure = lambda: (time.clock_gettime_ns(clock), net.loop.wakeups, sum(client["wakeups"] for client in net.stats()))
    settled = None
    while settled != (settled := measure()):
        time.sleep(0.1)
    time.sleep(2)
    idle = measure() == settled
    [rss] = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")]
    print(json.dumps({"idle": idle, "kib": rss, "netdevs": sum(client["name"].startswith("n") for client in net.stats())}))
"""
pytestmark = pytest.mark.slow

MIXED = ["null", "hubport,hubid=1", "py", "socketpair", "user", "dgram,local.type=unix,local.path={{path}}/{i},remote.type=unix,"
         "remote.path={{path}}/none", "stream,server=on,addr.type=unix,addr.path={{path}}/s{i}"]  # fmt: skip


@pytest.mark.parametrize("kinds", [MIXED, ["socketpair"], ["user"]], ids=["mixed", "socketpair", "user"])
def test_a_thousand_idle_netdevs(kinds: list[str], tmp_path: Path) -> None:
    kinds = [kind.replace("{{path}}", str(tmp_path)) for kind in kinds]
    done = subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT, json.dumps(kinds)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["netdevs"] == 1000
    assert said["idle"]
    assert said["kib"] < 64 * 1000
