"""docs/api.md: as the docstrings have it, and its examples run."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import kfcnet
from kfcnet import curvature
from kfcnet.config import load_config
from kfcnet.data import load

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def renderer():
    spec = importlib.util.spec_from_file_location("render_api", ROOT / "scripts" / "render_api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date():
    assert renderer().page() == PAGE, "run python scripts/render_api.py"


def test_every_public_function_is_on_the_page():
    headings = {line.removeprefix("### ").split(".")[0] for line in PAGE.splitlines()
                if line.startswith("### ")}  # fmt: skip
    functions = {name for name in curvature.__all__ if inspect.isfunction(getattr(curvature, name))}
    assert functions | set(kfcnet.__all__) <= headings


def test_the_signature_is_that_of_the_function():
    text = re.search(r"### input_factor\n\n```python\n(.*?)\n```", PAGE, re.DOTALL)[1]
    for name, parameter in inspect.signature(curvature.input_factor).parameters.items():
        assert re.search(rf"\b{name}: ", text)
        if parameter.default is not inspect.Parameter.empty:
            assert f"{name}: int={parameter.default}" in text


@pytest.mark.filterwarnings("ignore::kfcnet.training.errors.TrainingWarning")
def test_the_examples_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = load(load_config("digits_kfc").data)
    names = {"images": digits.train_images[:120], "labels": digits.train_labels[:120]}
    examples = re.findall(r"<!-- api -->\n```python\n(.*?)\n```", PAGE, re.DOTALL)
    assert len(examples) == PAGE.count("\n### ") > 20
    for example in examples:
        exec(compile(example, "docs/api.md", "exec"), names)
    assert (tmp_path / "copy" / "metrics.csv").exists()
