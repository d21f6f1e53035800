"""The command line: what each command does, and what bad input gets."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from kfcnet import cli
from kfcnet.config import config_names, load_config, parse_config
from kfcnet.curvature.inversion import InversionWarning
from kfcnet.figures import milestones
from kfcnet.ops import get_ops, which_device
from kfcnet.ops.cpu import CpuOps
from kfcnet.ops.errors import DeviceError
from kfcnet.runs.files import WriteError, write_json
from kfcnet.runs.metrics import create_metrics
from kfcnet.training.errors import TrainingInterrupted
from kfcnet.training.sweep import SweepError

ROOT = Path(__file__).parents[1]
SHORT = ["--config", "digits_sgd", "--device", "cpu", "--set", "epochs=0.1"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KFCNET_DATA", raising=False)


def complaint(capsys, command, *argv):
    """What a command prints when it refuses its input: one or two lines, and exit status 2."""
    assert command(argv) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert captured.out == "" and 1 <= len(lines) <= 2 and lines[0].startswith("error: ")
    return captured.err


@pytest.fixture
def noted(monkeypatch):
    """noted(name): the arguments with which a function of the package was called; the command ends
    there.
    """

    def noted(name):
        seen = []

        def note(*args, **kwargs):
            seen.append((*args, *kwargs.values()))
            raise KeyboardInterrupt

        monkeypatch.setattr(f"kfcnet.{name}", note)
        return seen

    return noted


def readme_commands():
    """The lines of shell blocks of README and docs/ that call the package, without comments."""
    pages = ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    blocks = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    blocks = re.sub("&&|mpiexec -n [0-9]+", "", blocks)
    words = [shlex.split(line, comments=True) for line in blocks.splitlines()]
    return [line for line in words if "kfcnet" in "".join(line[:1]) or "scripts/" in "".join(line)]


def test_train_leaves_a_run_in_results_under_the_name_of_its_config(capsys):
    assert cli.train(SHORT) == 0
    files = {path.name for path in Path("results/digits_sgd").iterdir()}
    assert files == {"config.yaml", "metrics.csv", "run.json", "checkpoint.h5", "curves.png"}
    assert "Traceback" not in capsys.readouterr().err


def test_rows_go_to_standard_output_and_the_rest_to_standard_error(capsys):
    assert cli.train([*SHORT, "--out", "here"]) == 0
    output = capsys.readouterr()
    rows = output.out.splitlines()
    assert len(rows) == len(Path("here/metrics.csv").read_text().splitlines()) - 1
    assert all(
        re.fullmatch(r"epoch .*; averaged parameters: training loss .*", row) for row in rows
    )
    assert "averaged" not in output.err and "update" in output.err


def test_out_names_another_folder(capsys):
    assert cli.train([*SHORT, "--out", "here"]) == 0
    assert Path("here/metrics.csv").exists() and not Path("results").exists()
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == "here: metrics.csv, curves.png, checkpoint.h5"


@pytest.mark.skipif(os.name != "posix", reason="the shell closes the streams")
@pytest.mark.parametrize(
    "closed, shown",
    [
        pytest.param("1>&-", "stderr", marks=pytest.mark.slow),
        pytest.param("2>&-", "stdout", marks=pytest.mark.slow),
        ("1>&- 2>&-", ""),
    ],
)
def test_a_run_does_not_need_the_streams_that_were_closed(closed, shown):
    argv = [sys.executable, "-m", "kfcnet", "train", *SHORT, "--device", "auto", "--out", "run"]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *argv], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert [name for name in ("stdout", "stderr") if getattr(done, name)] == shown.split()


def test_print_config_prints_what_loads_back_and_trains_nothing(capsys):
    assert cli.train(["--config", "cifar_kfc.yaml", "--set", "seed=7", "--print-config"]) == 0
    printed = parse_config(capsys.readouterr().out)
    assert printed == load_config("cifar_kfc", ["seed=7"])
    assert list(Path().iterdir()) == []


def test_picked_periods_are_printed_as_a_config_and_the_table_beside_it(capsys):
    argv = ["--config", "digits_kfc", "--device", "cpu", "--pick-periods", "1000", "--print-config"]
    assert cli.train(argv) == 0
    printed = capsys.readouterr()
    assert parse_config(printed.out) == load_config(
        "digits_kfc", ["device=cpu", "optimizer.statistics_period=1", "optimizer.inverse_period=1"]
    )
    assert "picked" in printed.err and list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "options, multiple, batch_size",
    [
        (["--pick-periods"], 2, 128),
        (["--pick-periods", "1.5", "--sgd-batch-size", "64", "--resume"], 1.5, 64),
        (["--pick-periods", "--overwrite"], 2, 128),
    ],
)
def test_periods_are_picked_by_twice_the_sgd_of_128_unless_told_otherwise(
    options, multiple, batch_size, noted
):
    settled = noted("training.periods.settle")
    assert cli.train(["--config", "digits_kfc", "--out", "run", *options]) == 130
    ((_, *arguments),) = settled
    resume, overwrite = "--resume" in options, "--overwrite" in options
    assert arguments == [Path("run"), resume, overwrite, multiple, batch_size]


def test_device_overrides_the_config(capsys):
    cli.train([*SHORT, "device=cuda", "--device", "cpu", "--print-config"])
    assert parse_config(capsys.readouterr().out).device == "cpu"


def test_a_run_is_neither_overwritten_nor_resumed_unasked(capsys):
    assert cli.train(SHORT) == 0
    before = Path("results/digits_sgd/metrics.csv").read_bytes()
    capsys.readouterr()
    assert "--resume" in complaint(capsys, cli.train, *SHORT)
    assert Path("results/digits_sgd/metrics.csv").read_bytes() == before
    assert cli.train([*SHORT, "--resume"]) == 0
    assert cli.train([*SHORT, "--overwrite"]) == 0


@pytest.mark.parametrize("argv, message", [
    (["--config", "digits_sgd", "--set", "optimizer.learning_rat=1"],
     "optimizer.learning_rat: unknown key"),
    (["--config", "digits_sgd", "--set", "optimizer.learning_rate=much"],
     "optimizer.learning_rate: must be a number"),
    (["--config", "digits_sgd", "--set", "epochs=-1"], "epochs: must be above 0"),
    (["--config", "digits_sgd", "--set", "network.0.kernel=99"], "network.0"),
    (["--config", "digits_sgd", "--set", "network.6.units=9"], "10 classes"),
    (["--config", "none"], "config none: No such file"),
    (["--config", "."], "config .: Is a directory"),
    (["--config", "cifar_sgd", "--set", "data.path=nowhere"], "data.path"),
    (["--config", "digits_sgd", "--out", "/dev/null"], "/dev/null"),
    (["--config", "digits_sgd", "--pick-periods"], "optimizer.name: sgd has no periods"),
    (["--config", "digits_kfc", "--pick-periods", "--set", "optimizer.statistics_period=9"],
     "optimizer.inverse_period: 4 is below statistics_period, 9"),
])  # fmt: skip
def test_train_refuses_bad_input_in_a_line_or_two(argv, message, capsys):
    assert message in complaint(capsys, cli.train, "--device", "cpu", *argv)
    assert not Path("results").exists() or not any(Path("results").rglob("metrics.csv"))


def test_a_gpu_that_is_not_there_is_an_error_with_the_way_out(capsys):
    try:
        get_ops("cuda")
    except DeviceError:
        assert "cuda" in complaint(capsys, cli.train, *SHORT, "--device", "cuda").lower()
    else:
        pytest.skip("there is a GPU")


def test_a_run_whose_numbers_fail_ends_with_status_1_and_one_line(capsys, recwarn):
    assert cli.train([*SHORT, "epochs=1", "optimizer.learning_rate=1e30"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: after update")
    assert not recwarn.list


def test_a_warning_is_one_line(monkeypatch, capsys):
    text = "step 3, conv1: Gamma is not finite; the last good inverses stay"
    monkeypatch.setattr(
        "kfcnet.training.train.train",
        lambda *args, **kwargs: warnings.warn(text, InversionWarning, stacklevel=1),
    )
    assert cli.train(SHORT) == 0
    assert capsys.readouterr().err.splitlines()[0] == f"warning: {text}"


def test_what_does_not_fit_into_memory_is_an_error_with_the_way_out(capsys):
    assert cli.train([*SHORT, "network.0.filters=1000000000000"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match("error: out of memory .*Unable to allocate.* smaller network", line)
    assert not Path("results/digits_sgd").exists()


@pytest.mark.parametrize(
    "error, status, line",
    [
        (WriteError("no room"), 1, "error: no room"),
        (SweepError("no images"), 2, "error: no images"),
        (TrainingInterrupted(15, "go on with --resume"), 143, "go on with --resume"),
        (
            MemoryError(),
            1,
            "error: out of memory: a smaller network or optimizer.batch_size takes less",
        ),
    ],
)
def test_an_error_that_is_foreseen_has_its_status_and_one_line(
    error, status, line, monkeypatch, capsys
):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("kfcnet.training.train.train", fail)
    assert cli.train(SHORT) == status
    assert capsys.readouterr().err.splitlines() == [line]


def test_a_command_whose_output_nobody_reads_any_more_ends_without_a_word(monkeypatch):
    def gone():
        raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(cli, "config_names", gone)
    assert cli.configs([]) == 141
    assert sys.stderr.closed  # else Python would complain there as it ends


def test_an_unforeseen_error_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("kfcnet.training.train.train", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.train(SHORT)


def test_evaluate_and_plot_read_a_run(capsys):
    cli.train(SHORT)
    capsys.readouterr()
    assert cli.evaluate(["results/digits_sgd", "--train", "--device", "cpu"]) == 0
    train, test = capsys.readouterr().out.splitlines()
    assert "(1437 images" in train and "(360 images" in test
    assert cli.plot(["results/digits_sgd", "--x", "updates", "--out", "new/figure.svg"]) == 0
    assert Path("new/figure.svg").stat().st_size > 1000
    assert capsys.readouterr().err == f"{Path('new/figure.svg')}\n"


def test_evaluate_measures_the_run_on_the_data_that_it_was_trained_on(monkeypatch, capsys):
    checked, places = [], []
    parts = {"train_images": [0] * 5, "train_labels": [1] * 5, "test_images": 0, "test_labels": [1]}
    classes = {f"class {number}": number / 100 for number in range(10)}
    run = SimpleNamespace(
        config=load_config("digits_sgd"),
        steps=7,
        check_data=checked.append,
        evaluate=lambda images, labels: (1.23456, 0.25 * len(labels)),
        class_errors=lambda images, labels: classes | ({"cat": 1.0} if len(labels) > 1 else {}),
    )
    dataset = SimpleNamespace(**parts)
    monkeypatch.setattr("kfcnet.training.evaluation.load_run", lambda folder, device: run)
    monkeypatch.setattr("kfcnet.data.load", lambda config: places.append(config.path) or dataset)
    assert cli.evaluate(["run", "--device", "cpu", "--data", "there", "--train"]) == 0
    assert places == [Path("there")] and checked == [dataset]
    ten = ", ".join(f"class {number} {number}.00%" for number in range(10))
    assert capsys.readouterr().out.splitlines() == [
        "train loss 1.2346 nats, error 125.00% (5 images, after update 7)",
        f"error by class: {ten}, ...",
        "test loss 1.2346 nats, error 25.00% (1 images, after update 7)",
        f"error by class: {ten}",
    ]


@pytest.mark.parametrize(
    "options, out, x",
    [([], "curves.png", "seconds"), (["--x", "epochs", "--out", "A.PNG"], "A.PNG", "epochs")],
)
def test_plot_draws_the_runs_over_the_axis_that_is_asked_for(options, out, x, noted):
    drawn = noted("figures.curves.plot_runs")
    assert cli.plot(["a", "b", *options]) == 130
    assert drawn == [([Path("a"), Path("b")], Path(out), x)]


@pytest.mark.parametrize(
    "options, by", [([], ("updates", "seconds")), (["--by", "updates"], ("updates",))]
)
def test_compare_prints_its_tables(options, by, monkeypatch, capsys):
    def compare(runs, out, by):
        seen.append((runs, out, by))
        out.mkdir(parents=True)
        (out / "runs.md").write_text("| run |\n")
        return ["a milestone"]

    seen = []
    monkeypatch.setattr(milestones, "compare", compare)
    monkeypatch.setattr(milestones, "markdown", lambda rows: f"| {rows[0]} |\n")
    assert cli.compare(["a", "b", *options]) == 0
    folder = Path("results/comparison")
    assert seen == [([Path("a"), Path("b")], folder, by)]
    printed = capsys.readouterr()
    assert printed.out == "| run |\n\n| a milestone |\n"
    assert printed.err == f"{folder / 'report.html'}\n"


def test_a_run_without_its_first_checkpoint_says_that_it_trains_or_was_killed(capsys):
    cli.train(SHORT)
    capsys.readouterr()
    Path("results/digits_sgd/checkpoint.h5").unlink()
    said = complaint(capsys, cli.evaluate, "results/digits_sgd", "--device", "cpu")
    assert "restore it, or train the run again" in said
    record = json.loads(Path("results/digits_sgd/run.json").read_text())
    write_json("results/digits_sgd/run.json", record | {"outcome": {"state": "failed"}})
    said = complaint(capsys, cli.evaluate, "results/digits_sgd", "--device", "cpu")
    assert "restore it, or train the run again" in said
    write_json("results/digits_sgd/run.json", record | {"outcome": {"state": "running"}})
    said = complaint(capsys, cli.evaluate, "results/digits_sgd", "--device", "cpu")
    assert "it trains and will write it soon, or was killed" in said and "--resume" in said


def test_names_that_standard_output_cannot_encode_are_escaped(monkeypatch):
    bytes_out = io.BytesIO()
    narrow = io.TextIOWrapper(bytes_out, encoding="latin-1", write_through=True)
    monkeypatch.setattr(sys, "stdout", narrow)
    assert cli.train([*SHORT, "--set", 'data.path="\u732b"', "--print-config"]) == 0
    assert b"path: \\u732b" in bytes_out.getvalue()


@pytest.mark.parametrize(
    "draw", [(cli.plot, "--out", "figure.png"), (cli.compare, "--out", "compared")]
)
def test_a_run_that_has_just_begun_is_drawn_without_it_and_named(draw, capsys):
    cli.train(SHORT)
    shutil.copytree("results/digits_sgd", "begun")
    create_metrics("begun/metrics.csv")
    command, *out = draw
    capsys.readouterr()
    assert command(["begun", "results/digits_sgd", *out]) == 0
    assert capsys.readouterr().err.startswith("begun has no row yet and is not drawn\n")
    assert Path(out[1]).exists()
    assert "nothing to draw yet in begun" in complaint(capsys, command, "begun", *out)


def test_the_device_that_auto_takes_is_said_in_one_line(capsys):
    for device, lines in (("auto", 1), ("cpu", 0)):
        cli.train([*SHORT, "--device", device, "--overwrite"])
        cli.evaluate(["results/digits_sgd", "--device", device])
        told = re.findall(r"^device: (?:cpu|cuda), \w.*$", capsys.readouterr().err, re.MULTILINE)
        assert len(told) == 2 * lines


def test_evaluate_and_plot_refuse_a_folder_without_a_run(capsys):
    assert "nowhere" in complaint(capsys, cli.evaluate, "nowhere", "--device", "cpu")
    assert "nowhere" in complaint(capsys, cli.plot, "nowhere")


def test_sweep_prints_a_table_of_its_runs(capsys):
    argv = [*SHORT, "--grid", "optimizer.learning_rate=0.1,0.01", "--out", "grid"]
    assert cli.sweep([*argv, "--stage", "0.1:all", "--stage", "0.2:1"]) == 0
    told = capsys.readouterr()
    assert told.out.count("\n") >= 5  # two lines of header, three results
    stages = [line for line in told.err.splitlines() if line.startswith("stage ")]
    assert stages == ["stage 1 of 2: 2 runs to epoch 0.1", "stage 2 of 2: 1 run to epoch 0.2"]


@pytest.mark.parametrize("failure, status", [("no data", 1), ("", 0)])
def test_a_sweep_is_given_its_options_and_fails_where_a_point_does(failure, status, monkeypatch):
    def sweep(*arguments):
        seen.append(arguments)
        Path("results/sweep_digits_sgd").mkdir(parents=True)
        Path("results/sweep_digits_sgd/sweep.md").touch()
        return [SimpleNamespace(failure=""), SimpleNamespace(failure=failure)]

    seen = []
    monkeypatch.setattr("kfcnet.training.sweep.sweep", sweep)
    assert cli.sweep([*SHORT, "--grid", "seed=1,2", "--workers", "2"]) == status
    out, settings = Path("results/sweep_digits_sgd"), ["epochs=0.1", "device=cpu"]
    assert seen == [("digits_sgd", {"seed": [1, 2]}, [], out, settings, 2)]


@pytest.mark.parametrize(
    "what, options, count",
    [("cpu", {"rounds": 3, "shards": 1, "native": "off"}, ()), ("processes", {"rounds": 3}, (2,))],
)
def test_a_benchmark_on_the_cpu_leaves_its_report_and_its_table(
    what, options, count, monkeypatch, capsys
):
    def benchmark(*args, **kwargs):
        return {"count": args, "options": kwargs}

    monkeypatch.setattr(f"kfcnet.benchmarks.{what}.benchmark_{what}", benchmark)
    monkeypatch.setattr(f"kfcnet.benchmarks.{what}.format_report", lambda report: "shown")
    monkeypatch.setattr(f"kfcnet.benchmarks.{what}.markdown", lambda report: "a table\n")
    argv = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    argv += ["--processes", "2"] if count else []
    assert cli.benchmark([*argv, "--json", "new/report.json"]) == 0
    assert capsys.readouterr().out == "shown\n"
    report = json.loads(Path("new/report.json").read_text())
    assert report == {"count": list(count), "options": options}
    assert Path("new/report.md").read_text() == "a table\n"


@pytest.mark.parametrize("options, out", [([], "reproduction"), (["--quick"], "quick")])
def test_a_reproduction_lies_in_results_and_a_quick_one_beside_it(options, out, noted):
    seen = noted("reproduce.reproduce")
    assert cli.reproduce(["fig1", *options]) == 130
    assert seen == [("fig1", Path("results", out), "auto", bool(options), None, {}, [], False, 1)]


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"kfcnet {metadata.version('kfcnet')}\n"


@pytest.mark.parametrize("argv", [
    [], ["dance"], ["train"], ["train", "--config", "digits_sgd", "--resume", "--overwrite"],
    ["train", "--config", "digits_sgd", "--device", "gpu"], ["plot", "run", "--out", "figure.gif"],
    ["sweep", "--config", "digits_sgd", "--grid", "nothing"],
    ["sweep", "--config", "digits_sgd", "--grid", "seed=1", "--stage", "x"],
    ["sweep", "--config", "digits_sgd", "--grid", "seed=1,1"],
    ["sweep", "--config", "digits_sgd", "--grid", "seed=1", "--workers", "0"],
    ["benchmark", "--rounds", "0"], ["benchmark", "--device", "cuda", "--native", "off"],
    ["benchmark", "--json", "report.md"],
    ["benchmark", "--processes", "1"], ["benchmark", "--processes", "2", "--shards", "2"],
    ["train", "--config", "digits_kfc", "--pick-periods", "nan"],
    ["train", "--config", "digits_kfc", "--pick-periods", "--sgd-batch-size", "0"],
    ["train", "--config", "digits_kfc", "--print-config", "--sgd-batch-size", "64"],
])  # fmt: skip
def test_misuse_is_one_line_that_names_the_help_and_status_2(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and line.startswith("error: ")
    assert re.search(r"\(`kfcnet( \w+)? --help` lists the options\)$", line)


def test_the_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    words = capsys.readouterr().out.replace(",", " ").split()
    assert set(cli.COMMANDS) <= set(words)


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    assert stopped.value.code == 0 and f"usage: kfcnet {name}" in capsys.readouterr().out


@pytest.mark.parametrize("words", readme_commands(), ids=" ".join)
def test_readme_commands_are_understood(words, noted):
    targets = (
        "training.train.train",
        "training.evaluation.load_run",
        "training.periods.settle",
        "training.sweep.sweep",
        "figures.curves.plot_runs",
        "figures.milestones.compare",
        "benchmarks.cpu.benchmark_cpu",
        "reproduce.reproduce",
        "reproduce.demo.demo",
    )
    seen = [noted(target) for target in targets]
    if words[0] == "python":
        assert (ROOT / words[1]).is_file()
        words = ["kfcnet", Path(words[1]).stem, *words[2:]]
    status = cli.main(words[1:])
    assert (status, sum(map(len, seen))) == ((0, 0) if "--print-config" in words else (130, 1))


@pytest.mark.parametrize("script", list(cli.COMMANDS))
def test_scripts_run_from_any_folder(script):
    command = [sys.executable, ROOT / "scripts" / f"{script}.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {script}.py")


MEANT = [
    ("train --config digits_kfc --epochs 3", "--set epochs=3?"),
    ("train --config digits_kfc --seed=1", "--set seed=1?"),
    ("train --config digits_kfc --lr 0.1", "--set optimizer.learning_rate=0.1?"),
    ("train --config digits_kfc --wd 0.1", "--set optimizer.weight_decay=0.1?"),
    ("train --config digits_kfc --lr --bs 64", "--set optimizer.learning_rate=VALUE?"),
    ("train --config digits_kfc --batch-size", "--set optimizer.batch_size=VALUE?"),
    ("train --config digits_kfc learning_rate=0.1", "--set optimizer.learning_rate=0.1?"),
    ("train digits_kfc", "--config digits_kfc?"),
    ("train my.yaml", "--config my.yaml?"),
    ("train my.yml", "--config my.yml?"),
    ("reproduce fig1 --lr 0.1", "--set optimizer.learning_rate=0.1?"),
]


@pytest.mark.parametrize("line, suggested", MEANT, ids=[line for line, _ in MEANT])
def test_what_was_meant_by_an_argument_is_suggested(line, suggested, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(line.split())
    assert stopped.value.code == 2
    assert f"no such argument; did you mean {suggested}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    ["train --config digits_kfc --foo", "evaluate run --lr 1", "train --config digits_kfc --resum"],
)
def test_nothing_is_suggested_where_nothing_is_like_it(line, capsys):
    with pytest.raises(SystemExit):
        cli.main(line.split())
    assert "no such argument (" in capsys.readouterr().err


@pytest.mark.parametrize(
    "setting, message",
    [
        (["--config", "cifar_kcf"], "No such file or directory; did you mean cifar_kfc?"),
        (["--config", "digits_kfc", "--set", "optimizer.name=kfc"], "did you mean kfc_pre?"),
        (
            ["--config", "digits_kfc", "--set", "learning_rate=0.1"],
            "learning_rate: unknown key; did you mean optimizer.learning_rate?",
        ),
    ],
)
def test_a_name_that_is_nearly_right_gets_the_right_one(setting, message, capsys):
    assert message in complaint(capsys, cli.train, *setting)


def test_every_configuration_is_listed_with_a_sentence(capsys):
    assert cli.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == config_names()
    assert all(re.fullmatch(r"\w+ {2,}[A-Z].*\.", line) for line in lines)
    said = dict(line.split(maxsplit=1) for line in lines)
    assert said["cifar_kfc"] == "The paper's CIFAR-10 network trained with KFC-pre (Figure 1a, 1b)."
    assert said["cifar_sgd"] == "The paper's CIFAR-10 network trained with SGD and momentum."
    assert said["digits_sgd_bn"] == (
        "The network of digits_kfc_bn.yaml trained with SGD and momentum."
    )


def test_a_missing_package_is_named_with_the_way_out(tmp_path):
    """Python without site-packages, as where the environment was not activated."""
    script = ROOT / "scripts" / "train.py"
    done = subprocess.run([sys.executable, "-S", script], capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and ".venv/bin/pip install -e ." in line
    assert line.startswith("error: the package ")


def test_without_the_extension_a_line_says_what_it_would_bring(monkeypatch):
    monkeypatch.setattr("kfcnet.ops.cpu.cpu_ops._native", None)
    assert "without the C extension" in which_device(CpuOps())


def test_the_package_runs_as_a_module_and_explains_itself_without_loading_what_trains():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "kfcnet", "train", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.startswith("usage: kfcnet train")
    assert "kfcnet.config" in done.stderr and "matplotlib" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_ctrl_c_says_how_to_go_on():
    command = [sys.executable, ROOT / "scripts/train.py", *SHORT, "epochs=10000", "--out", "run"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (
        Path("run/metrics.csv").exists() and len(Path("run/metrics.csv").read_text()) > 300
    ):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in errors and "Traceback" not in errors
