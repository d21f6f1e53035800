"""Run docs/walkthrough.py and render it to docs/walkthrough.md with its figures.

    python scripts/render_walkthrough.py

The script is in jupytext's percent format: cells of markdown and of code. What a code cell prints
and the figures that it opens stand behind it in the page. Formulas are written as Jupyter reads
them, $...$ and $$...$$; the page has them as GitHub reads them, in code, where Markdown leaves a
backslash before a punctuation mark alone.
"""

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run the code of this checkout

SCRIPT = ROOT / "docs" / "walkthrough.py"


class Cell(NamedTuple):
    """Text in markdown, or code."""

    is_code: bool
    text: str


def read_cells(script):
    """The cells of a script in percent format."""
    parts = re.split(r"^# %%(.*)\n", script, flags=re.MULTILINE)[1:]
    return [
        _code(text) if "[markdown]" not in kind else _markdown(text)
        for kind, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def _code(text):
    return Cell(True, text.strip("\n"))


def _markdown(text):
    lines = text.strip("\n").split("\n")
    return Cell(False, "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines))


def run(cells):
    """For each cell (what it prints, the figures it opens); raises what a cell raises."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    namespace, results = {"__name__": "walkthrough"}, []
    plt.close("all")
    for cell in cells:
        printed, before = io.StringIO(), plt.get_fignums()
        if cell.is_code:
            with contextlib.redirect_stdout(printed):
                exec(compile(cell.text, SCRIPT.name, "exec"), namespace)
        figures = [plt.figure(number) for number in plt.get_fignums() if number not in before]
        lines = (line.rstrip() for line in printed.getvalue().rstrip().split("\n"))
        results.append(("\n".join(lines), figures))
    return results


def render(cells, results, folder):
    """The page in markdown; its figures are saved in `folder`."""
    from kfcnet.figures.curves import DATELESS

    blocks, count = [], 0
    for cell, (printed, figures) in zip(cells, results, strict=True):
        blocks.append(f"```python\n{cell.text}\n```" if cell.is_code else github_math(cell.text))
        if printed:
            blocks.append(f"```text\n{printed}\n```")
        for figure in figures:
            count += 1
            name = f"{SCRIPT.stem}_{count}.png"
            figure.savefig(folder / name, dpi=150, metadata=DATELESS["png"])
            blocks.append(f"![Figure {count}]({name})")
    return "\n\n".join(blocks) + "\n"


def github_math(text):
    """Markdown with formulas in Jupyter's spelling -> in GitHub's."""
    text = re.sub(r"\$\$(.+?)\$\$", r"```math\n\1\n```", text, flags=re.DOTALL)
    return re.sub(r"(?<![$`])\$([^$`]+?)\$(?!`)", r"$`\1`$", text)


def main(folder=SCRIPT.parent):
    """Write the page and its figures into a folder; by default beside the script."""
    from matplotlib import style

    from kfcnet.figures.curves import STYLE

    cells = read_cells(SCRIPT.read_text(encoding="utf-8"))
    with style.context(["default", STYLE, {"axes.grid": False}]):
        page = render(cells, run(cells), folder)
    (folder / f"{SCRIPT.stem}.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
