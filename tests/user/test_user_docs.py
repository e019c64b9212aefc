"""docs/user.md: its examples run and print what they say, and every option is on it."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from qnet.backends.user import Options
from qnet.options import fields_of

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "user.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", PAGE, re.M | re.S)


@pytest.mark.parametrize(("code", "output"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_example(code: str, output: str) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "docs/user.md", "exec"), {})

    def shape(text: str) -> str:
        """Descriptor and port of the table are another one's each time."""
        return re.sub(r"(HOST_FORWARD\]) +\d+ +(\S+) +\d+", r"\1 FD \2 PORT", text)

    assert shape(printed.getvalue()) == shape(output)


def test_the_page_is_whole() -> None:
    assert len(EXAMPLES) == 3
    assert not [name for name in fields_of(Options) if not re.search(rf"`{name}=", PAGE)]
