"""Every example on a page runs and prints what the page says; every link leads somewhere; tables name what there is."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md"), *(ROOT / "bench").rglob("*.md")])

# The examples of a page share one namespace, in order; what each prints is kept apart.
RUNNER = """
import contextlib, io, json, sys
outputs, space = [], {"__name__": "__main__"}
for i, code in enumerate(json.load(sys.stdin)):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, f"example {i + 1}", "exec"), space)
    outputs.append(out.getvalue())
print(json.dumps(outputs))
"""


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_examples_run_and_print_what_the_page_says(
    page: Path, examples: Callable[[Path], list[tuple[str, str | None]]], tmp_path: Path
) -> None:
    blocks = examples(page)
    if not blocks:
        return
    run = [sys.executable, "-W", "error", "-c", RUNNER]
    codes = json.dumps([code for code, _ in blocks])
    done = subprocess.run(run, input=codes, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    for (code, said), printed in zip(blocks, json.loads(done.stdout), strict=True):
        if said is not None:
            assert printed == said, code


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_named_are_targets_of_the_makefile(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    commands = re.findall(r"`[^`\n]+`|^```console\n.*?^```", page.read_text(), re.M | re.S)
    assert set(re.findall(r"\bmake ([a-z][\w-]*)", "".join(commands))) <= targets


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    missing = [p.name for p in (ROOT / "docs").glob("*.md") if p.name != "README.md" and f"({p.name})" not in index]
    assert not missing


def test_readme_names_every_kind_and_no_other() -> None:
    from qnet.kinds import FILTERS, NET_CLIENT_INIT, NIC_MODELS

    tables = (ROOT / "README.md").read_text().split("## What there is")[1].split("## Install")[0]
    listed = [set(re.findall(r"`([\w-]+)`", "".join(row.split("|")[1] for row in rows.splitlines() if row.startswith("| `"))))
              for rows in tables.split("\n\n") if rows.startswith("|")]
    netdevs = {kind for kind, row in NET_CLIENT_INIT.items() if row.netdev or kind == "dump"}
    assert listed == [kinds for kinds in (netdevs, set(NIC_MODELS), set(FILTERS)) if kinds]
