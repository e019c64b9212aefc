"""docs/vde.md, docs/af-xdp.md and docs/netmap.md name every option and no other; the examples that need root print what the page says."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qnet.backends import af_xdp, netmap, vde
from qnet.options import fields_of

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(("page", "options"), [("vde.md", vde.Options), ("af-xdp.md", af_xdp.Options), ("netmap.md", netmap.Options)])
def test_every_option_has_a_row(page: str, options: type) -> None:
    section = (DOCS / page).read_text().split("## Options")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in row.split("|")] for row in section.replace("\\|", "/").splitlines() if row.startswith("| `")]
    specs = fields_of(options)
    assert [re.split("[=`]", row[1])[1] for row in rows] == list(specs)
    assert {row[1].split("=")[0][1:] for row in rows if row[2] == "required"} == {name for name in specs if specs[name].required}


@pytest.mark.root
def test_the_example_for_root(ns: Any, tmp_path: Path) -> None:
    [(code, said)] = re.findall(r"^```py\n(.*?)^```\n\s*^```text\n(.*?)^```$", (DOCS / "af-xdp.md").read_text(), re.M | re.S)
    ns.run("ip link add v0 type veth peer name v1")
    with ns:
        done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == (said, 0), done.stderr
