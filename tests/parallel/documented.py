"""The programs of docs/large-models.md."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "large-models.md"


def program(heading: str) -> str:
    """The first block of Python under a heading."""
    _, _, below = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    return re.search(r"```python\n(.*?)```", below, re.DOTALL)[1]
