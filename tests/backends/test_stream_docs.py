"""docs/stream.md names every option of stream, socket and passt, and no other."""

import re
from pathlib import Path

import pytest

from qnet.backends import passt, stream
from qnet.backends import socket as socket_netdev
from qnet.options import fields_of
from qnet.sockaddr import Fd, Inet, Unix

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "stream.md").read_text()


@pytest.mark.parametrize(
    ("heading", "options"),
    [("## Options", stream.Options), ("| `addr.type=inet`", Inet), ("| `addr.type=unix`", Unix), ("| `addr.type=fd`", Fd),
     ("## `socket`", socket_netdev.Options), ("## `passt`", passt.Options)],
)
def test_every_option_has_a_row(heading: str, options: type) -> None:
    table = re.search(r"(?:^\|.*\n)+", PAGE[PAGE.index(heading) :], re.M)
    assert table
    rows = {row.split("`")[1]: row.split("|")[2].strip() for row in table[0].splitlines()[2:]}
    specs = fields_of(options)
    assert set(rows) == set(specs)
    for name, default in rows.items():
        assert (default == "required") == specs[name].required, name
        if specs[name].default is not None:
            assert default == specs[name].kind.show(specs[name].default), name
