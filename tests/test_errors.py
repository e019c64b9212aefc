"""Errors carry QEMU's text and a hint; -errno becomes an exception at one door."""

import errno
import os
import pickle

import pytest

from qnet.errors import DeviceNotFound, DuplicateId, Error, HostError, OptionError, Unavailable, check


def test_text_stays_apart_from_hint():
    e = Error("Device 'a' could not be initialized", "look at the log")
    assert e.text == "Device 'a' could not be initialized"
    assert str(e) == "Device 'a' could not be initialized; look at the log"
    assert str(Error("only text")) == "only text"


def test_device_not_found_is_qmps_class():
    e = DeviceNotFound("n0")
    assert (e.text, e.name, e.qmp_class) == ("Device 'n0' not found", "n0", "DeviceNotFound")
    assert OptionError("x").qmp_class == "GenericError"


@pytest.mark.parametrize(
    ("kind", "builtin"), [(OptionError, ValueError), (DuplicateId, OptionError), (DeviceNotFound, LookupError), (Unavailable, RuntimeError)]
)
def test_each_error_is_also_a_builtin(kind, builtin):
    with pytest.raises(builtin):
        raise kind("x")
    assert issubclass(kind, Error)


@pytest.mark.parametrize("rc", [0, 1, 4096])
def test_check_passes_results_through(rc):
    assert check(rc, "opening") == rc


def test_check_raises_with_errno_and_hint():
    with pytest.raises(OSError, match="could not open '/dev/net/tun': Operation not permitted; needs CAP_NET_ADMIN") as caught:
        check(-errno.EPERM, "could not open '/dev/net/tun'", {errno.EPERM: "needs CAP_NET_ADMIN"})
    assert isinstance(caught.value, HostError)
    assert (caught.value.errno, caught.value.strerror) == (errno.EPERM, os.strerror(errno.EPERM))
    with pytest.raises(HostError) as caught:
        check(-errno.ENOENT, "could not open '/dev/net/tun'", {errno.EPERM: "needs CAP_NET_ADMIN"})
    assert caught.value.hint == ""


@pytest.mark.parametrize("error", [OptionError("a", "b"), DeviceNotFound("n0", "b"), HostError(errno.EIO, "reading", "b")])
def test_errors_travel_between_processes(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.text, copy.hint) == (type(error), str(error), error.text, error.hint)
