"""Where the numbers of a run come from: program, versions, machine and data, for `run.json`."""

import functools
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path, PureWindowsPath

LIBRARIES = ("numpy", "scipy", "h5py", "matplotlib", "pydantic", "PyYAML", "threadpoolctl", "tqdm")
KEYS = re.compile(r"([\w.-]+\s*=\s*)*")  # of `--set=data.path=DIR`; a folder may be called `seed=1`
YAML_MARKS = re.compile(r"""([\[\]{},"']\s*|:\s+)""")  # of a mapping or a list on one line


def describe_run(config, ops, provenance, train_measured_on):
    """The content of a new run's `run.json`, without any path of the machine.

    provenance: base names, checksums and notes of the data; train_measured_on: a phrase.
    """
    return base_names(
        {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            **describe_program(),
            "seed": config.seed,
            "device": ops.describe(),
            "data": provenance,
            "train_measured_on": train_measured_on,
            "phases_measured": ops.phases_measured,
            "outcome": {"state": "running"},
        }
    )


def describe_program():
    """The program and where it runs: {"commit", "versions", "machine"}."""
    return {
        "commit": _commit(),
        "versions": {
            "kfcnet": _version("kfcnet"),
            "python": platform.python_version(),
            **{name: _version(name) for name in LIBRARIES},
        },
        "machine": {"system": platform.system(), "cores": os.cpu_count()},
    }


def base_names(value):
    """`value` with every path reduced to its last part that is absolute or has `..` in it.

    Searches strings (also after `key=`, and mappings and lists in YAML), lists, tuples and
    dictionaries.
    """
    if isinstance(value, dict):
        return {key: base_names(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [base_names(item) for item in value]
    if not isinstance(value, (str, os.PathLike)):
        return value
    text = str(value)
    keys = KEYS.match(text)[0]
    rest = text[len(keys) :]
    parts = YAML_MARKS.split(rest) if rest.startswith(("{", "[")) else [rest]
    return keys + "".join(map(_base_name, parts))


def _base_name(text):
    path = PureWindowsPath(text)  # splits at both kinds of slash
    return path.name if path.root or path.drive or ".." in path.parts else text


def _commit():
    """The commit of the project's working tree; None outside of a repository.

    It ends in `-dirty` where a tracked file differs, except in results/, where runs write.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments):
        return subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=True,
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


@functools.cache  # a package's metadata takes milliseconds to read
def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
