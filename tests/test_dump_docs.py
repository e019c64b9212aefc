"""docs/capture.md: its examples run, and print what they say."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from qnet.filters.dump import Options
from qnet.options import fields_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "capture.md"
BLOCKS = re.findall(r"^```(python|console)\n(.*?)^```", PAGE.read_text(), re.M | re.S)


@pytest.mark.tshark
def test_the_examples_run_and_print_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed = 0
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, str(PAGE), "exec"), {})
            continue
        for command, output in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", text, re.M):
            run = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
            assert run.stdout == output
            printed += 1
    assert (printed, len(BLOCKS)) == (3, 6)


def test_every_option_is_on_the_page() -> None:
    page = PAGE.read_text()
    assert not [name for name in fields_of(Options) if f"`{name}=" not in page]
