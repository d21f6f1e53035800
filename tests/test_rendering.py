"""The pages made from scripts: formulas as GitHub renders them; rendering gives what is there."""

import re

import pytest
from notebooks import DOCS, cells, images, printed_in_page

SCRIPTS = {
    path.relative_to(DOCS).as_posix(): path
    for path in (DOCS / "walkthrough.py", *sorted((DOCS / "course").glob("[0-9]_*.py")))
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_page_has_formulas_as_github_renders_them(name):
    """A backslash before a punctuation mark is lost outside of code: all formulas are in code."""
    page = SCRIPTS[name].with_suffix(".md").read_text(encoding="utf-8")
    text = re.sub(r"^```(?:python|text)\n.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
    displayed, inline = text.count("```math\n"), len(re.findall(r"\$`[^`$]+`\$", text))
    assert displayed > 0 and inline > 10
    rest = re.sub(r"```math\n.*?\n```|\$`[^`$]+`\$", "", text, flags=re.DOTALL)
    assert "$" not in rest and "\\" not in rest and "```" not in rest
    script = SCRIPTS[name].read_text(encoding="utf-8")
    jupyter = "".join(text for is_code, _, text in cells(script) if not is_code)
    assert "$`" not in jupyter and jupyter.count("$$") == 2 * displayed


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_figure_has_an_alternative_text_of_its_own(name):
    page = SCRIPTS[name].with_suffix(".md").read_text(encoding="utf-8")
    texts = [alt for alt, _ in images(page)]
    assert len(set(texts)) == len(texts) > 0
    assert all(len(alt.split()) > 4 for alt in texts)


@pytest.mark.parametrize("name", SCRIPTS)
def test_page_and_notebook_have_every_cell_of_the_script_as_it_is_now(name):
    pytest.importorskip("jupytext", reason="the extra `docs` is not installed")
    pytest.importorskip("nbclient", reason="the extra `docs` is not installed")
    from scripts import render_docs

    script = SCRIPTS[name]
    fresh = render_docs.read(script.read_text(encoding="utf-8"))
    page = script.with_suffix(".md").read_text(encoding="utf-8")
    for cell in fresh.cells:
        if cell.cell_type == "markdown":
            assert render_docs.github_math(cell.source) in page
    if script.parent != DOCS:
        kept = render_docs.nbformat.read(script.with_suffix(".ipynb"), 4)
        assert [cell.source for cell in kept.cells] == [cell.source for cell in fresh.cells]


def test_a_script_is_rendered_to_a_notebook_and_a_page(tmp_path):
    """Needs what `pip install -e '.[docs]'` installs."""
    pytest.importorskip("jupytext", reason="the extra `docs` is not installed")
    pytest.importorskip("nbclient", reason="the extra `docs` is not installed")
    from scripts import render_docs

    script = tmp_path / "chapter.py"
    script.write_text(
        "# %% [markdown]\n# # Title\n#\n# The square $x^2$.\n\n# %%\nx = 1\n\n\n"
        '# %% alt="a line that rises"\nimport matplotlib.pyplot as plt\n\n\n'
        "def y(x):\n    return x  # $no formula$\n\n\nprint(y(x))\nprint('end')\n"
        "plt.plot([1, 2])\n"
    )
    render_docs.main([script])
    page = (tmp_path / "chapter.md").read_text()
    assert page.startswith("# Title\n\nThe square $`x^2`$.\n\n```python\nx = 1\n```\n\n```python\n")
    assert "return x  # $no formula$\n\n\nprint" in page
    assert page.endswith("```text\n1\nend\n```\n\n![a line that rises](chapter_1.png)\n")
    assert printed_in_page(page) == "1\nend"
    assert (tmp_path / "chapter_1.png").read_bytes().startswith(b"\x89PNG")
    notebook = render_docs.nbformat.read(tmp_path / "chapter.ipynb", 4)
    render_docs.nbformat.validate(notebook)
    (figure,) = notebook.cells[2].outputs[1:]
    assert figure.metadata["image/png"].alt == "a line that rises"


def test_a_figure_without_an_alternative_text_is_refused(tmp_path):
    pytest.importorskip("jupytext", reason="the extra `docs` is not installed")
    pytest.importorskip("nbclient", reason="the extra `docs` is not installed")
    from scripts import render_docs

    script = tmp_path / "chapter.py"
    script.write_text("# %%\nimport matplotlib.pyplot as plt\n\nplt.plot([1, 2])\n")
    with pytest.raises(ValueError, match="alternative text"):
        render_docs.main([script])
