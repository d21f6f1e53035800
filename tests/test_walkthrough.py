"""The walk-through: it agrees with the library, and the page is what the script renders to."""

import re

import numpy as np
import pytest
from matplotlib import image

from scripts import render_walkthrough
from scripts.render_walkthrough import SCRIPT, Cell, read_cells, render

DOCS = SCRIPT.parent
PAGE = DOCS / "walkthrough.md"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A folder with the page and the figures as the script makes them now."""
    folder = tmp_path_factory.mktemp("docs")
    render_walkthrough.main(folder)
    return folder


def test_the_page_is_the_script_as_it_runs(rendered):
    """Running it compares every step with the library; the numbers it prints are the page's."""
    assert (rendered / "walkthrough.md").read_text() == PAGE.read_text()


def test_the_page_shows_the_figures_that_the_script_draws(rendered):
    names = re.findall(r"!\[.*\]\((.*)\)", PAGE.read_text())
    assert names == [f"walkthrough_{i}.png" for i in (1, 2, 3)]
    assert {path.name for path in DOCS.glob("*.png")} == set(names)
    for name in names:
        drawn, shown = (image.imread(folder / name) for folder in (rendered, DOCS))
        assert drawn.std() > 0.05 and np.isfinite(drawn).all()
        assert np.abs(np.array(drawn.shape[:2]) / shown.shape[:2] - 1).max() < 0.1


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("np.sqrt(c) / pi * np.eye", "np.sqrt(c) * pi * np.eye"),
        ("DS.T @ DS / len(DS)", "DS.T @ DS / len(x)"),
        ("p.cumsum(axis=1) <= u[:, None]", "p.cumsum(axis=1) <= 0.5"),
        ("np.sqrt(cap / nu)", "cap / nu"),
    ],
)
def test_a_wrong_line_is_noticed(right, wrong):
    text = SCRIPT.read_text()
    assert text.count(right) == 1
    with pytest.raises(AssertionError, match="Not equal"):
        render_walkthrough.run(read_cells(text.replace(right, wrong)))


def test_it_agrees_with_the_library_whatever_the_seed():
    text = SCRIPT.read_text()
    assert text.count("\nepochs: 1\n") == 1
    render_walkthrough.run(read_cells(text.replace("epochs: 1\n", "epochs: 1\nseed: 5\n")))


def test_cells_are_text_or_code_and_results_stand_behind_them(tmp_path):
    script = "# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 1\n\n\n# %%\nprint(x)\n"
    cells = read_cells(script)
    assert cells == [Cell(False, "# Title\n\nText."), Cell(True, "x = 1"), Cell(True, "print(x)")]
    page = render(cells, render_walkthrough.run(cells), tmp_path)
    assert page == (
        "# Title\n\nText.\n\n```python\nx = 1\n```\n\n```python\nprint(x)\n```\n\n```text\n1\n```\n"
    )


def test_the_readme_links_the_page():
    assert "(docs/walkthrough.md)" in (DOCS.parent / "README.md").read_text()


def test_the_page_has_formulas_as_github_renders_them():
    """A backslash before a punctuation mark is lost outside of code: all formulas are in code."""
    text = re.sub(r"```(?:python|text).*?```", "", PAGE.read_text(), flags=re.DOTALL)
    displayed, inline = text.count("```math\n"), len(re.findall(r"\$`[^`$]+`\$", text))
    assert displayed > 2 and inline > 10
    rest = re.sub(r"```math\n.*?\n```|\$`[^`$]+`\$", "", text, flags=re.DOTALL)
    assert "$" not in rest and "\\" not in rest and "```" not in rest
    jupyter = "".join(cell.text for cell in read_cells(SCRIPT.read_text()) if not cell.is_code)
    assert "$`" not in jupyter and jupyter.count("$$") == 2 * displayed
