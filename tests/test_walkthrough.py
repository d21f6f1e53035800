"""The walk-through: it agrees with the library, and the page is what the script renders to."""

import re

import numpy as np
import pytest
from matplotlib import image
from notebooks import DOCS, cells, images, printed_in_page, run_script

SCRIPT = (DOCS / "walkthrough.py").read_text(encoding="utf-8")
PAGE = (DOCS / "walkthrough.md").read_text(encoding="utf-8")


def test_the_page_prints_and_shows_what_the_script_does():
    """Running it compares every step with the library; the numbers it prints are the page's."""
    ran, names = run_script(SCRIPT, DOCS), [name for _, name in images(PAGE)]
    assert ran.printed == printed_in_page(PAGE) != ""
    assert names == [f"walkthrough_{i}.png" for i in (1, 2, 3)] and len(ran.figures) == len(names)
    assert {path.name for path in DOCS.glob("walkthrough*.png")} == set(names)
    for figure, name in zip(ran.figures, names, strict=True):
        shown = image.imread(DOCS / name)
        assert shown.std() > 0.05 and np.isfinite(shown).all()
        assert shown.shape[1] == pytest.approx(150 * figure.get_figwidth(), rel=0.01)


def test_the_page_has_every_line_of_code_of_the_script():
    code = re.findall(r"^```python\n(.*?)\n```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert code == [text for is_code, _, text in cells(SCRIPT) if is_code]


@pytest.mark.slow
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
    assert SCRIPT.count(right) == 1
    with pytest.raises(AssertionError, match="Not equal"):
        run_script(SCRIPT.replace(right, wrong), DOCS)


@pytest.mark.slow
def test_it_agrees_with_the_library_whatever_the_seed():
    assert SCRIPT.count("\nepochs: 1\n") == 1
    run_script(SCRIPT.replace("epochs: 1\n", "epochs: 1\nseed: 5\n"), DOCS)


def test_the_readme_links_the_page():
    assert "(docs/walkthrough.md)" in (DOCS.parent / "README.md").read_text()
