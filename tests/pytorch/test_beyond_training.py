"""docs/beyond-training.md: the code about folding runs, and prints what it shows; the rest is in examples/."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

PAGE = (
    (Path(__file__).parents[2] / "docs" / "beyond-training.md")
    .read_text("utf-8")
    .partition("## Average models")[0]
)
# Each block of code, with what is printed below it.
BLOCKS = re.findall(r"^```python\n(.*?)^```\n(?:\n^```\n(.*?)^```)?", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_the_code_prints_what_the_page_shows() -> None:
    names: dict[str, Any] = {}
    printed = []
    for code, _ in BLOCKS:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, "beyond-training.md", "exec"), names)
        printed.append(out.getvalue())
    assert len(BLOCKS) >= 2
    assert printed == [shown for _, shown in BLOCKS]
