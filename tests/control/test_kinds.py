"""One table a family: every module in it, every row loads, and help comes from it."""

import dataclasses
import importlib
import pkgutil

import pytest

from qnet import backends, filters, kinds, models
from qnet.errors import OptionError
from qnet.options import Opt

ROWS = {
    "backends": (backends, {row.module for row in kinds.NET_CLIENT_INIT.values()}, "open"),
    "filters": (filters, {row.module for row in kinds.FILTERS.values()}, "open"),
    "models": (models, {row.module for row in kinds.NIC_MODELS.values()}, "realize"),
}
SHARED = {"qnet.models.pci"}                    # ground under several models


@pytest.mark.parametrize("family", ROWS)
def test_tables_and_files_agree(family):
    package, rows, _ = ROWS[family]
    files = {f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")}
    assert files - SHARED == rows


@pytest.mark.parametrize("family", ROWS)
def test_every_module_has_the_two_names(family):
    _, rows, door = ROWS[family]
    for name in rows:
        module = importlib.import_module(name)
        assert callable(getattr(module, door)), name
        assert dataclasses.is_dataclass(module.Options), name
        for field in dataclasses.fields(module.Options):
            assert isinstance(field.metadata["opt"], Opt), f"{name}: {field.name}"
            assert field.metadata["opt"].help, f"{name}: {field.name} has no help"


def test_tables_are_in_alphabetical_order():
    for table in (kinds.NET_CLIENT_INIT, kinds.NIC_MODELS, kinds.FILTERS):
        assert list(table) == sorted(table)
        assert all(row.summary for row in table.values())


def test_what_is_here_is_not_said_to_be_missing():
    assert not set(kinds.QEMU_KINDS) & set(kinds.NET_CLIENT_INIT)


def test_netdev_help():
    lines = kinds.netdev_help().splitlines()
    assert lines[0] == "Available netdev backend types:"
    assert [line.split()[0] for line in lines[1:]] == sorted(kind for kind, row in kinds.NET_CLIENT_INIT.items() if row.netdev)
    assert kinds.netdev_help("hubport").splitlines() == [
        "hubport options:",
        "  hubid=<int32>          - number of the hub (required)",
        "  netdev=<str>           - id of a netdev to plug into the port",
    ]


def test_nic_help():
    lines = kinds.nic_help().splitlines()
    assert lines[0] == "Supported NIC models:"
    assert [line.split()[0] for line in lines[1:]] == sorted(kinds.NIC_MODELS)
    assert "  bootindex=<int32>" in kinds.nic_help("e1000")
    assert "mitigation=<bool>" in kinds.nic_help("e1000-82540em")


def test_filter_help():
    assert kinds.filter_help().startswith("List of user creatable objects:")


@pytest.mark.parametrize("helper", [kinds.netdev_help, kinds.nic_help, kinds.filter_help])
def test_help_for_nothing(helper):
    with pytest.raises(OptionError):
        helper("nope")
