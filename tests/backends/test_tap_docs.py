"""docs/tap.md names every option and no other, and its examples that need root print what it says."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qnet.backends import bridge, tap
from qnet.options import fields_of

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tap.md").read_text()


@pytest.mark.parametrize(("heading", "options"), [("## Options of tap", tap.Options), ("## Options of bridge", bridge.Options)])
def test_every_option_has_a_row(heading: str, options: type) -> None:
    section = PAGE.split(heading)[1].split("\n## ")[0]
    rows = [row.split("|")[1] for row in section.replace("\\|", "/").splitlines() if row.startswith("| `")]
    assert {re.split("[=`]", word)[0] for row in rows for word in re.findall(r"`([^`]+)`", row)} == set(fields_of(options))


@pytest.mark.root
def test_the_examples_for_root(ns: Any, tmp_path: Path) -> None:
    blocks = re.findall(r"^```py\n(.*?)^```\n\s*^```text\n(.*?)^```$", PAGE, re.M | re.S)
    assert len(blocks) == 2
    code = "\n".join(code for code, _ in blocks)
    with ns:
        done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(said for _, said in blocks)
