"""The README's tables are the ones that our own runs left, letter for letter; its examples run."""

import re
from pathlib import Path

import numpy as np
import pytest

from kfcnet.config import load_config
from kfcnet.trainer import train

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
