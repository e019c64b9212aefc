"""DNS and outside hosts, in a network namespace of our own where 192.0.2.53 is the name server of resolv.conf."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = '''
import importlib.util, os, socket, sys, threading
spec = importlib.util.spec_from_file_location("user_conftest", sys.argv[1])
kit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kit)
from qnet.net import Net

QUERY = bytes.fromhex("123401000001000000000000") + b"\\x07example\\x03org\\0\\0\\x01\\0\\x01"
ANSWER = bytes.fromhex("123481800001000100000000") + QUERY[12:] + bytes.fromhex("c00c00010001000000050004cb007101")

def serve(family, kind, address, reply):
    s = socket.socket(family, kind)
    s.bind((address, 53))
    if kind == socket.SOCK_STREAM:
        s.listen()
    def run():
        if kind == socket.SOCK_STREAM:
            c, _ = s.accept()
            data = c.recv(100)
            assert data == len(QUERY).to_bytes(2, "big") + QUERY, data
            c.sendall(len(ANSWER).to_bytes(2, "big") + ANSWER)
            c.close()
        else:
            data, peer = s.recvfrom(1500)
            assert data == QUERY, data
            s.sendto(reply, peer)
        s.close()
    threading.Thread(target=run, daemon=True).start()

with Net() as net:
    client = net.netdev_add("user,id=n0")
    g = kit.Guest(net, client)
    serve(socket.AF_INET, socket.SOCK_DGRAM, "192.0.2.53", ANSWER)
    g.udp("10.0.2.3", 53, QUERY)
    assert g.udp_reply(53) == ANSWER
    serve(socket.AF_INET6, socket.SOCK_DGRAM, "2001:db8::53", ANSWER)
    g.udp("fec0::3", 53, QUERY)
    assert g.udp_reply(53) == ANSWER
    serve(socket.AF_INET, socket.SOCK_STREAM, "192.0.2.53", ANSWER)
    tcp = g.connect("10.0.2.3", 53)
    tcp.send(len(QUERY).to_bytes(2, "big") + QUERY)
    assert tcp.recv_all()[2:] == ANSWER
    serve(socket.AF_INET, socket.SOCK_DGRAM, "192.0.2.53", b"from outside")      # an address that is not the network's
    g.udp("192.0.2.53", 53, QUERY, 4100)
    assert g.udp_reply(53, 4100) == b"from outside"
    g.port.close()
print("answered")
'''


@pytest.mark.root
def test_queries_reach_the_hosts_name_servers(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.53\nnameserver 2001:db8::53\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    script = f"{sys.executable} {tmp_path}/script.py {Path(__file__).with_name('conftest.py')}"
    setup = (
        f"mount --bind {tmp_path}/resolv.conf /etc/resolv.conf && ip link set lo up && ip addr add 192.0.2.53/32 dev lo"
        f" && ip addr add 2001:db8::53/128 dev lo nodad && exec {script}"
    )
    run = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", setup],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, "answered\n"), run.stderr
