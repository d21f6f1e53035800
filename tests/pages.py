"""The README and the pages of docs/, and the Python in them."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}


def blocks(marker):
    """The blocks of Python behind a marker in the pages."""
    text = "".join(PAGES.values())
    found = re.findall(rf"<!-- {marker} -->\n```python\n(.*?)```", text, re.DOTALL)
    assert len(found) == text.count(f"<!-- {marker} -->") > 0
    return [compile(block, "docs", "exec") for block in found]
