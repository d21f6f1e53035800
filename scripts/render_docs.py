"""Run the scripts of docs/ that are also notebooks, and render them: notebooks, pages, figures.

    python scripts/render_docs.py                     # the walk-through and all chapters
    python scripts/render_docs.py docs/course/1_fisher.py

A script is in jupytext's percent format. nbclient runs it as Jupyter does; a chapter of the course
is kept as a notebook with its outputs, nbconvert makes the page from the same outputs. A cell that
draws names the figure's alternative text: `# %% alt="..."`. Formulas are written as Jupyter reads
them, $...$ and $$...$$; the page has them as GitHub reads them, in code, where Markdown leaves a
backslash before a punctuation mark alone. Needs `pip install -e '.[docs]'`.
"""

import os
import re
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SCRIPTS = (DOCS / "walkthrough.py", *sorted((DOCS / "course").glob("[0-9]_*.py")))
SECONDS = 1200  # that a cell may take on a machine that has other work to do

SETUP = """
import matplotlib.pyplot
from kfcnet.figures.curves import DATELESS, STYLE
plain = {"axes.grid": False, "figure.dpi": 150, "image.interpolation": "nearest"}
matplotlib.pyplot.rcParams.update(STYLE | plain)
settings = {"bbox_inches": None, "metadata": DATELESS["png"]}
get_ipython().run_line_magic("config", f"InlineBackend.print_figure_kwargs = {settings}")
"""
TEMPLATE = """
{%- extends 'markdown/index.md.j2' -%}
{%- block stream %}
```text
{{ output.text.rstrip() }}
```
{% endblock stream -%}
{%- block data_png %}
![{{ output.metadata["image/png"].alt }}]({{ output.metadata.filenames["image/png"] }})
{% endblock data_png -%}
"""


def read(script):
    """The notebook of a script in percent format, without outputs."""
    notebook = jupytext.reads(script, fmt="py:percent")
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index}"  # the same script gives the same file
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python", "file_extension": ".py"},
    }
    return notebook


def run(notebook, folder):
    """Run a notebook in a folder and keep the outputs in it; raises what a cell raises.

    Raises ValueError where a figure has no alternative text.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SETUP))
    settings = {"timeout": SECONDS, "record_timing": False}
    settings["resources"] = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, **settings).execute(env=environment)
    del notebook.cells[0]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, 1):
        cell.execution_count = count
        cell.outputs = [*_printed(cell), *_figures(cell)]


def _printed(cell):
    """The lines that a cell prints, as one output."""
    streams = [output for output in cell.outputs if output.output_type == "stream"]
    text = "".join(output.text for output in streams if output.name == "stdout").rstrip()
    if text:
        lines = "".join(f"{line.rstrip()}\n" for line in text.split("\n"))
        yield nbformat.v4.new_output("stream", name="stdout", text=lines)


def _figures(cell):
    """The figures that a cell draws, with their alternative text."""
    for output in cell.outputs:
        if "image/png" in output.get("data", {}):
            if "alt" not in cell.metadata:
                raise ValueError(f"a figure without an alternative text: {cell.source[-200:]}")
            alt = cell.metadata.alt
            data = {"image/png": output.data["image/png"], "text/plain": alt}
            metadata = {"image/png": {"alt": alt}}
            yield nbformat.v4.new_output("display_data", data, metadata=metadata)


def render(notebook, stem):
    """(the page in Markdown, {file name: bytes of a figure}) of a notebook that has run."""
    exporter = MarkdownExporter(raw_template=TEMPLATE)
    page, resources = exporter.from_notebook_node(notebook)
    figures = {}
    for count, (name, content) in enumerate(resources["outputs"].items(), 1):
        figures[f"{stem}_{count}.png"] = content
        page = page.replace(f"({name})", f"({stem}_{count}.png)")
    parts = re.split(r"(^```.*?^```$)", page, flags=re.DOTALL | re.MULTILINE)
    page = "".join(part if part.startswith("```") else _prose(part) for part in parts)
    return page.strip() + "\n", figures


def _prose(text):
    return re.sub(r"\n{3,}", "\n\n", github_math(text))


def github_math(text):
    """Markdown with formulas in Jupyter's spelling -> in GitHub's."""
    text = re.sub(r"\$\$\s*(.+?)\s*\$\$", r"```math\n\1\n```", text, flags=re.DOTALL)
    return re.sub(r"(?<![$`])\$([^$`]+?)\$(?!`)", r"$`\1`$", text)


def main(scripts=SCRIPTS, folder=None):
    """Write page, figures and, of a chapter, notebook into a folder; by default beside a script."""
    for script in map(Path, scripts):
        out = folder or script.parent
        notebook = read(script.read_text(encoding="utf-8"))
        run(notebook, script.parent)
        page, figures = render(notebook, script.stem)
        (out / f"{script.stem}.md").write_text(page, encoding="utf-8")
        for name, content in figures.items():
            (out / name).write_bytes(content)
        if script.parent != DOCS:
            nbformat.write(notebook, out / f"{script.stem}.ipynb")


if __name__ == "__main__":
    main([Path(name).resolve() for name in sys.argv[1:]] or SCRIPTS)
