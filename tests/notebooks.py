"""Scripts of docs/ that are also notebooks: run as plain Python, and read as they were rendered."""

import contextlib
import io
import json
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parents[1] / "docs"


class Ran(NamedTuple):
    """What a script printed, its figures and the processor seconds that it took."""

    printed: str
    figures: list
    seconds: float


def run_script(text, folder):
    """Run the text of a script in a folder; raises what it raises."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.close("all")
    printed, before, started = io.StringIO(), os.getcwd(), time.process_time()
    with contextlib.redirect_stdout(printed):
        os.chdir(folder)
        try:
            exec(compile(text, "script", "exec"), {"__name__": "script"})
        finally:
            os.chdir(before)
    figures = [plt.figure(number) for number in plt.get_fignums()]
    lines = [line.rstrip() for line in printed.getvalue().split("\n")]
    return Ran("\n".join(filter(None, lines)), figures, time.process_time() - started)


def cells(text):
    """[(whether it is code, its metadata, its text)] of a script in percent format."""
    parts = re.split(r"^# %%(.*)\n", text, flags=re.MULTILINE)[1:]
    return [
        ("[markdown]" not in kind, kind.strip(), part.strip("\n"))
        for kind, part in zip(parts[::2], parts[1::2], strict=True)
    ]


def printed_in_page(page):
    """All that the page says was printed, without empty lines."""
    blocks = re.findall(r"^```text\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    return "\n".join(line for line in "".join(blocks).split("\n") if line)


def printed_in_notebook(path):
    """The same of a notebook's outputs."""
    outputs = [
        output
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        for output in cell.get("outputs", [])
    ]
    text = "".join("".join(output.get("text", [])) for output in outputs)
    return "\n".join(line for line in text.split("\n") if line)


def images(page):
    """[(alternative text, file name)] of the figures of a page."""
    return re.findall(r"!\[(.*)\]\((.*)\)", page)
