"""The README's commands, in their order, in a fresh clone with an environment of its own."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from data_sources import binary_batch

ROOT = Path(__file__).resolve().parents[1]
BATCHES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="the README's shell is a POSIX one"),
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone"),
    pytest.mark.skipif(not shutil.which("git"), reason="git is not installed"),
]


def commands(text, marker):
    """The lines of the block of shell commands behind a marker."""
    (block,) = re.findall(rf"<!-- commands: {marker} -->\n```sh\n(.*?)```", text, re.DOTALL)
    return [line.partition("#")[0].strip() for line in block.splitlines()]


@pytest.fixture
def images(tmp_path):
    """Files of CIFAR-10's names and sizes, with images of noise."""
    folder, rng = tmp_path / "images" / "cifar10", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in BATCHES:
        pixels = rng.integers(0, 256, (10_000, 32, 32, 3), np.uint8)
        (folder / name).write_bytes(binary_batch(pixels, rng.integers(0, 10, 10_000)))
    return folder.parent


def test_a_fresh_clone_does_what_the_readme_says(tmp_path, images):
    clone = tmp_path / "kfcnet"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    readme = (clone / "README.md").read_text(encoding="utf-8")
    environment = {**os.environ, "KFCNET_DATA": str(images), "MPLCONFIGDIR": str(tmp_path)}

    def start(command):
        return subprocess.Popen(
            ["bash", "-c", f"[ ! -d .venv ] || . .venv/bin/activate; exec {command}"],
            cwd=clone,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def is_clean():
        status = ["git", "status", "--porcelain"]
        return not subprocess.run(status, cwd=clone, capture_output=True, check=True).stdout

    (first,) = commands(readme, "train")
    subprocess.run(["bash", "-c", first], cwd=clone, env=environment, check=True)
    assert (clone / "results/demo/demo.png").exists() and is_clean()
    tested, others = [], commands(readme, "use")
    for command in others:
        process = start(command)
        config = re.search(r"train\.py --config (\w+)\.yaml", command)
        if config:  # hours: it is stopped once it has begun to train, and keeps what it has
            table = clone / "results" / config[1] / "metrics.csv"
            while not (table.exists() and len(table.read_text().splitlines()) > 1):
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            text = process.communicate()[0]
            assert process.returncode == 130 and "--resume" in text, text
        elif "reproduce" in command:  # minutes, and a test of its own in test_reproduce.py
            while process.poll() is None and not list(clone.glob("results/quick/runs/*/run.json")):
                time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            text = process.communicate()[0]
            assert process.returncode == 130, text
        else:
            text = process.communicate()[0]
            assert process.returncode == 0, text
        assert is_clean(), command
        tested.append(command.split()[1])
    assert tested == [
        f"scripts/{name}.py" for name in ("train", "train", "compare", "evaluate", "reproduce")
    ]
    assert (clone / "results/comparison/report.html").exists()
