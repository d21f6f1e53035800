"""The README's tables are the ones that our own runs left, letter for letter; its examples run."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from kfcnet.config import load_config
from kfcnet.training.trainer import train

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLES = re.findall(r"<!-- table: (\S+) -->\n((?:\|.*\n)+)", README)


def test_the_readme_quotes_recorded_tables():
    assert len(TABLES) == README.count("<!-- table:") > 0


@pytest.mark.parametrize("path, quoted", TABLES, ids=[path for path, _ in TABLES])
def test_a_quoted_table_is_the_recorded_one(path, quoted):
    assert quoted == (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:|#)([^)]+)\)", README))))
def test_the_readme_links_to_files_that_exist(target):
    assert (ROOT / target.split("#")[0]).exists()


def imported(path):
    """What of kfcnet a file or the files of a folder import: its modules and packages."""
    for file in path.rglob("*.py") if path.is_dir() else [path]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = (getattr(node, "module", None) or "").split(".")
            if isinstance(node, ast.ImportFrom) and names[0] == "kfcnet":
                yield from names[1:2] or [alias.name for alias in node.names]


def test_every_module_rests_on_its_own_row_and_those_before_it():
    text = README[README.index("## Reading the code") : README.index("## Licence")]
    rows = [
        re.findall(r"`([\w]+)(?:\.py|/)`", line.split("|")[1])
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    package = ROOT / "kfcnet"
    there = {
        path.stem
        for path in package.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    } - {"__init__"}
    assert sorted(sum(rows, [])) == sorted(there)
    before = set()
    for row in rows:
        before |= set(row)
        for name in row:
            path = package / name if (package / name).is_dir() else package / f"{name}.py"
            assert set(imported(path)) & there <= before, name


def test_the_readme_examples_run_on_its_first_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train(load_config("digits_kfc", ["epochs=0.5", "device=cpu"]), "results/first")
    examples = re.findall(r"<!-- example -->\n```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) == README.count("<!-- example -->") > 0
    capsys.readouterr()
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})
    printed = re.findall(r"[-+.\de]+", capsys.readouterr().out)
    largest, estimated = np.sort(np.array(printed, float).reshape(2, 3))
    np.testing.assert_allclose(estimated, largest, rtol=0.5)
