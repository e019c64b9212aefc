"""docs/options.md names every option of the parts it is about, and no other. Its examples run in test_docs.py."""

import re
from pathlib import Path

import pytest

from qnet.backends import hubport, nic, null
from qnet.options import FilterOptions, NicOptions, fields_of

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "options.md").read_text()


@pytest.mark.parametrize(
    ("heading", "options"),
    [
        ("### hubport", hubport.Options),
        ("### null", null.Options),
        ("## NICs", NicOptions),
        ("`net_add(text)` is the legacy form", nic.Options),
        ("## Filters", FilterOptions),
    ],
)
def test_every_option_has_a_row(heading, options):
    rows = re.search(r"(?:^\|.*\n)+", PAGE[PAGE.index(heading) :], re.M)[0].splitlines()[2:]
    documented = {row.split("`")[1]: [cell.strip() for cell in row.split("|")[2:]] for row in rows}
    specs = fields_of(options)
    assert set(documented) == set(specs)
    for name, (_, default, _, _) in documented.items():
        assert (default == "required") == specs[name].required, name
        if specs[name].default is not None:
            assert default == specs[name].kind.show(specs[name].default), name
