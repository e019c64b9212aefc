"""Options of tap and bridge, what excludes what, and the errors of who may not: QEMU's words (2.3, 2.4). No root."""

import errno
import logging
import os
import shutil
import subprocess
import sys

import pytest

from qnet import Error, HostError, Net, OptionError
from qnet.backends import bridge, tap
from qnet.kinds import netdev_help
from qnet.options import fields_of

WITH_FD = "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, fds=, and vhostfds= are invalid with fd="
WITH_FDS = "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, and vhostfd= are invalid with fds="
WITH_HELPER = "ifname=, script=, downscript=, vnet_hdr=, queues=, and vhostfds= are invalid with helper="
MISMATCH = "The number of fds passed does not match the number of vhostfds passed"
NO_VHOST = "vhostfd(s)= is not valid without vhost"
NO_IOCTL = "Inappropriate ioctl for device"

REFUSED = [
    *((f"tap,id=x,fd=5,{other}", WITH_FD) for other in (
        "ifname=a", "script=no", "downscript=no", "vnet_hdr=off", "helper=h", "queues=1", "fds=1:2", "vhostfds=1:2")),
    *((f"tap,id=x,fds=5:6,{other}", WITH_FDS) for other in (
        "ifname=a", "script=no", "downscript=no", "vnet_hdr=on", "helper=h", "queues=2", "vhostfd=7")),
    *((f"tap,id=x,helper=h,{other}", WITH_HELPER) for other in (
        "ifname=a", "script=no", "downscript=no", "vnet_hdr=on", "queues=1", "vhostfds=1:2")),
    ("tap,id=x,vhostfds=1:2", "vhostfds= is invalid if fds= wasn't specified"),
    ("tap,id=x,fds=5:6,vhostfds=1", MISMATCH),
    ("tap,id=x,fds=5:6,vhostfds=1:2:3,vhost=on", MISMATCH),
    ("tap,id=x,vhost=off,vhostfd=7", NO_VHOST),
    ("tap,id=x,fds=5:6,vhost=off,vhostfds=7:8", NO_VHOST),
    ("tap,id=x,vhost=on,vhostforce=on", "vhost-net requested but could not be initialized"),
    ("tap,id=x,vhostforce=on", "vhost-net requested but could not be initialized"),
    ("tap,id=x,fd=nosuch", "File descriptor named 'nosuch' has not been found"),
    ("tap,id=x,fd=-1", "File descriptor named '-1' has not been found"),
    ("tap,id=x,fd=", "File descriptor named '' has not been found"),
    ("tap,id=x,fds=", "File descriptor named '' has not been found"),
    ("tap,id=x,fd=5x", "Invalid file descriptor number '5x'"),
    ("tap,id=x,fd=99999999999", "Invalid file descriptor number '99999999999'"),
    ("tap,id=x,fd=3000000", "x: Can't use file descriptor 3000000: Bad file descriptor"),
    ("tap,id=x,sndbuf=x", "Parameter 'sndbuf' expects a size value"),
    ("tap,id=x,vnet_hdr=x", "Parameter 'vnet_hdr' expects 'on' or 'off'"),
    ("tap,id=x,queues=-1", "Parameter 'queues' expects a uint64 value"),
    ("tap,id=x,queues=0", "Parameter 'queues' expects a number from 1 on"),
    ("tap,id=x,foo=1", "Invalid parameter 'foo'"),
    ("tap,id=x,ifname=averyveryverylongname,script=no", "Parameter 'ifname' doesn't take value 'averyveryverylongname'"),
    ("bridge,id=x,foo=1", "Invalid parameter 'foo'"),
    ("bridge,id=x,br=averyveryverylongname", "bridge helper failed"),
    ("bridge,id=x,br=exactly16letters", "bridge helper failed"),
    ("bridge,id=x,br=", "bridge helper failed"),
    ("bridge,id=x,br=a/b", "bridge helper failed"),
    ("bridge,id=x,br=a b,helper=true x", "bridge helper failed"),
    ("bridge,id=x,helper=/nonexistent", "bridge helper failed"),
    ("tap,id=x,helper=/nonexistent", "bridge helper failed"),
    ("bridge,id=x,helper=/bin/false", "bridge helper failed"),
    ("bridge,id=x,helper=exit 3;", "bridge helper failed"),
    ("bridge,id=x,helper=/bin/true", "failed to recv file descriptor"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_what_is_refused(net: Net, text: str, said: str) -> None:
    with pytest.raises(Error) as raised:
        net.netdev_add(text)
    assert raised.value.text == said
    assert net.clients == ()


def test_a_descriptor_that_is_no_tap(net: Net) -> None:
    fd = os.open("/dev/null", os.O_RDWR)
    try:
        for options in (f"fd={fd}", f"fds={fd}:{fd}"):
            with pytest.raises(HostError) as raised:
                net.netdev_add(f"tap,id=x,{options}")
            assert raised.value.text == f"Unable to query TUNGETIFF on FD {fd}: {NO_IOCTL}"
            assert raised.value.errno == errno.ENOTTY
    finally:
        os.close(fd)


@pytest.mark.parametrize("text", ["1:2", [1, 2], (1, 2)])
def test_descriptors_from_python_may_be_numbers(net: Net, text: object) -> None:
    with pytest.raises(OptionError, match="invalid with fds="):
        net.netdev_add("tap", id="x", fds=text, queues=2)


@pytest.mark.parametrize("value", [[], [1, "2"], 1.5, True, [True]])
def test_descriptors_are_nothing_else(net: Net, value: object) -> None:
    with pytest.raises(OptionError, match="Invalid parameter type for 'fds', expected: string"):
        net.netdev_add("tap", id="x", fds=value)


@pytest.mark.parametrize("options", ["vhost=on", "vhostfd=7", "vhost=on,vhostfd=nosuch", "vhost=on,vhostforce=off", "poll-us=50,vhost=on"])
def test_vhost_is_done_without(net: Net, options: str, caplog: pytest.LogCaptureFixture) -> None:
    """It goes on to the next error."""
    with caplog.at_level(logging.WARNING), pytest.raises(HostError, match="Unable to query TUNGETIFF"):
        fd = os.open("/dev/null", os.O_RDWR)
        try:
            net.netdev_add(f"tap,id=x,fd={fd},{options}")
        finally:
            os.close(fd)
    assert "vhost-net requested but could not be initialized" in caplog.text


def test_names_that_are_too_long_are_told_as_such(net: Net) -> None:
    """CVE-2019-13164 was the helper's; here they do not reach it."""
    with pytest.raises(OptionError) as raised:
        net.netdev_add("bridge", id="x", br="exactly16letters")
    assert raised.value.hint == "'exactly16letters' is no interface: a name has 1 to 15 bytes, no blank and no '/'"


def test_what_a_helper_said_is_in_the_hint(net: Net) -> None:
    with pytest.raises(Error) as raised:
        net.netdev_add("tap", id="x", helper="echo no bridge for you >&2; exit 1;")
    assert raised.value.hint == "no bridge for you"


def test_a_helper_is_called_as_qemu_calls_it(net: Net, tmp_path: object) -> None:
    said = f"{tmp_path}/said"
    for kind in ("tap", "bridge"):
        with pytest.raises(Error):
            net.netdev_add(kind, id="x", br="some-br", helper=f"printf '%s ' >{said}")
        with open(said) as f:
            words = f.read().split()
        assert [word.split("=")[0] for word in words] == ["--use-vnet", "--fd", "--br"]
        assert words[2] == "--br=some-br"
    with pytest.raises(Error):
        net.netdev_add("bridge", id="x", br="some-br", helper=f"printf '%s ' >{said} --br=mine")
    with open(said) as f:
        assert [word.split("=")[0] for word in f.read().split()] == ["--br", "--use-vnet", "--fd"]


def unprivileged() -> list[str]:
    """A command that starts another without capabilities."""
    if os.geteuid():
        return []
    setpriv = shutil.which("setpriv")
    assert setpriv, "util-linux"
    return [setpriv, "--bounding-set=-all", "--inh-caps=-all"]


@pytest.mark.parametrize(("options", "place"), [("", ""), (",ifname=tap9", " (tap9)"), (",ifname=q%d", " (q%d)"), (",queues=2", "")])
def test_who_may_not_is_told_what_he_may(options: str, place: str) -> None:
    if not os.path.exists("/dev/net/tun"):
        expected = "could not open /dev/net/tun: No such file or directory; modprobe tun, or give the container this device; or use user"
    else:
        expected = f"could not configure /dev/net/tun{place}: Operation not permitted; needs CAP_NET_ADMIN, or pass fd=, or use user"
    code = (
        "import qnet\nwith qnet.Net() as net:\n try: net.netdev_add('tap,id=x,script=no,downscript=no" + options + "')\n"
        " except qnet.HostError as e: print(e)"
    )
    done = subprocess.run([*unprivileged(), sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (tap.Options, "ifname fd fds script downscript br helper sndbuf vnet_hdr vhost vhostfd vhostfds vhostforce queues poll-us"),
        (bridge.Options, "br helper"),
    ],
)
def test_the_options_are_qemus(options: type, names: str) -> None:
    assert list(fields_of(options)) == names.split()


def test_help() -> None:
    assert "  ifname=<str>           - name of the interface; a %d in it becomes a free number (default: tap%d)" in netdev_help("tap")
    assert "  br=<str>               - the bridge that the new tap becomes a port of (default: br0)" in netdev_help("bridge")
