"""The package as users get it: what a wheel holds, and that it works away from the checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = (
    "kfcnet",
    "kernels",
    "configs",
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)
IGNORED = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "*.egg-info")


def run(*command, **settings):
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, **settings)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(folder, **environment):
    """Build a wheel from a copy of the sources, so that the checkout stays as it is."""
    source = folder / "source"
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=IGNORED)
        else:
            source.mkdir(exist_ok=True)
            shutil.copy(path, source / name)
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        folder,
        source,
        env={**os.environ, **environment},
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel, folder):
    """A virtual environment with the wheel in it, and the dependencies of this one in reach."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    site = Path(
        run(
            folder / "bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"
        ).strip()
    )
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        folder / "bin/python",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
    )
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_ci_runs_the_readmes_test_command_and_nothing_else():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    marked = re.findall(r"<!-- commands: test -->\n```sh\n(.*?)```", readme, re.DOTALL)
    assert len(marked) == 1 and "pytest" in marked[0]
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "<!-- commands: test -->" in script and "-m pytest" not in script
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_the_citation_names_the_paper():
    yaml = pytest.importorskip("yaml")
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Grosse", "Martens"]
    assert paper["year"] == 2016


@pytest.mark.slow
def test_a_wheel_holds_kernels_configs_and_digits(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {"kfcnet/data/digits.h5"}
    expected |= {f"kfcnet/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    expected |= {f"kfcnet/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.cu*")}
    assert expected <= names
    assert not any(name.startswith(("tests", "scripts", "results", "data/")) for name in names)


@pytest.mark.slow
def test_an_installed_wheel_trains_the_digits_from_an_empty_folder(wheel, tmp_path):
    programs = install(wheel, tmp_path / "venv")
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    settings = {"cwd": empty, "env": environment}
    where = run(programs / "python", "-c", "import kfcnet; print(kfcnet.__file__)", **settings)
    assert Path(where.strip()).is_relative_to(tmp_path / "venv")
    run(programs / "kfcnet", "train", "--config", "digits_kfc.yaml", "--device", "cpu", **settings)
    metrics = (empty / "results/digits_kfc/metrics.csv").read_text().splitlines()
    last = dict(zip(metrics[0].split(","), metrics[-1].split(","), strict=True))
    assert float(last["test_error"]) < 0.05
    assert (empty / "results/digits_kfc/curves.png").stat().st_size > 10000


@pytest.mark.slow
def test_a_broken_compiler_does_not_break_the_install(tmp_path):
    names = zipfile.ZipFile(build_wheel(tmp_path, CC="false", CXX="false")).namelist()
    assert "kfcnet/cli/__init__.py" in names
    assert not any("_native" in name for name in names)
