"""The chapters of the course: they run, and pages and notebooks have what they print."""

import json
import re

import pytest
from notebooks import DOCS, cells, images, printed_in_notebook, printed_in_page, run_script

from kfcnet.course import EXERCISES
from kfcnet.optimizers.kfc_pre import KfcPre
from kfcnet.runs.read import read_run

ROOT, COURSE = DOCS.parent, DOCS / "course"
CHAPTERS = sorted(COURSE.glob("[0-9]_*.py"))
NAMES = [path.stem for path in CHAPTERS]
RECORD = "record: "  # lines about recorded runs, of which there may be more by now
RATE = re.compile(r"rate ([\d.]+):")  # one that was chosen as the best
PHASES = ("gradient", "statistics", "inverses", "preconditioning", "clip")


def page_of(chapter):
    return chapter.with_suffix(".md").read_text(encoding="utf-8")


def lines_of(text):
    return [line for line in text.split("\n") if not line.startswith(RECORD)]


def parts(line):
    """(the words of a line, its numbers but for a rate that was chosen)."""
    line = RATE.sub("rate:", line)
    number = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
    return re.sub(number, "#", " ".join(line.split())), [
        float(found) for found in re.findall(number, line)
    ]


def assert_same_lines(lines, expected):
    """Equal words; numbers near each other, rounding errors (below 1e-4) and small losses
    after some updates (which differ by up to 0.02) of the same kind.

    Trainings amplify the last bits of another machine's arithmetic: one run more may be lost, and
    of two rates that end alike the other one may be the best.
    """
    assert len(lines) == len(expected)
    for line, other in zip(lines, expected, strict=True):
        (words, numbers), (other_words, other_numbers) = parts(line), parts(other)
        assert words == other_words
        rates, other_rates = (
            [float(rate) for rate in RATE.findall(each)] for each in (line, other)
        )
        for rate, neighbour in zip(rates, other_rates, strict=True):
            assert 0.29 < rate / neighbour < 3.4, (line, other)  # 0.1, 0.3, 1: neighbours
        least = 1 if re.search(r"\d of \d+ are", line) else 2e-2 if "updates" in line else 1e-4
        assert numbers == pytest.approx(other_numbers, rel=0.25, abs=least), (line, other)


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS, ids=NAMES)
def test_a_chapter_prints_what_its_page_and_its_notebook_say(chapter):
    ran = run_script(chapter.read_text(encoding="utf-8"), COURSE)
    if chapter.stem == "5_training":
        cuda_on_cpu = pytest.importorskip("cuda_on_cpu")
        if cuda_on_cpu.missing():
            pytest.skip(cuda_on_cpu.missing())
    assert_same_lines(lines_of(ran.printed), lines_of(printed_in_page(page_of(chapter))))
    assert len(ran.figures) == len(images(page_of(chapter)))
    assert ran.seconds < 240, "two minutes on two cores"


def test_chapter_5_draws_the_two_methods_and_takes_its_shares_from_a_run_that_it_draws():
    printed = printed_in_page(page_of(COURSE / "5_training.py")).split("\n")
    records = [line.removeprefix(RECORD) for line in printed if line.startswith(RECORD)]
    assert {line.split(": ")[0] for line in records} == {"KFC-pre, M = 512", "SGD, M = 128"}
    rate = re.search(r"KFC-pre, M = 512: drawn are .* at rate ([\d.]+)", "\n".join(records))[1]
    said = [int(share) for share in re.findall(r"(\d+)%", records[-1])]
    shares = []
    for folder in (ROOT / "results/paper/runs").glob(f"cifar_kfc_{rate}_seed*"):
        end = {name: column[-1] for name, column in read_run(folder).metrics.items()}
        shares.append([round(100 * end[f"seconds_{name}"] / end["seconds"]) for name in PHASES])
    assert said in shares and len(said) == len(PHASES)


def test_no_best_rate_of_chapter_5_is_the_smallest_or_the_largest_that_was_tried():
    page = page_of(CHAPTERS[4])
    tried = re.search(r"^RATES = \((.*)\)$", page, re.MULTILINE)[1].split(", ")
    best = RATE.findall(page)
    assert len(best) == 8  # two methods of the first figure, at three sizes of the second
    assert all(min(map(float, tried)) < float(rate) < max(map(float, tried)) for rate in best)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=NAMES)
def test_a_page_and_a_notebook_print_the_same(chapter):
    printed = printed_in_page(page_of(chapter))
    assert printed == printed_in_notebook(chapter.with_suffix(".ipynb")) != ""


@pytest.mark.parametrize("chapter", CHAPTERS, ids=NAMES)
def test_a_page_has_every_cell_of_its_script(chapter):
    page = page_of(chapter)
    code = re.findall(r"^```python\n(.*?)\n```$", page, flags=re.DOTALL | re.MULTILINE)
    script = cells(chapter.read_text(encoding="utf-8"))
    assert code == [text for is_code, _, text in script if is_code]
    prose = [text for is_code, _, text in script if not is_code]
    headings = re.findall(r"^# (#+ .*)$", "\n".join(prose), flags=re.MULTILINE)
    assert len(headings) > 4
    for heading in headings:
        assert f"\n{heading}\n" in f"\n{page}"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=NAMES)
def test_a_notebook_has_the_cells_of_its_script_in_order(chapter):
    pytest.importorskip("jupytext", reason="the extra `docs` is not installed")
    from scripts.render_docs import read

    script = read(chapter.read_text(encoding="utf-8"))
    notebook = json.loads(chapter.with_suffix(".ipynb").read_text(encoding="utf-8"))
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]] == [
        (cell.cell_type, cell.source) for cell in script.cells
    ]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=NAMES)
def test_a_chapter_asks_its_exercises_and_answers_none(chapter):
    text = chapter.read_text(encoding="utf-8")
    numbers = [number for number in EXERCISES if number[0] == chapter.stem[0]]
    assert re.findall(r'^check\("(.*)", \w+\)$', text, flags=re.MULTILINE) == numbers
    printed = printed_in_page(page_of(chapter))
    assert [f"Exercise {number}: no answer yet" in printed for number in numbers] == [True] * len(
        numbers
    )


def test_changed_words_and_numbers_are_noticed():
    assert_same_lines(["loss 0.51 after 3 steps"], ["loss 0.50 after 3 steps"])
    with pytest.raises(AssertionError):
        assert_same_lines(["loss 0.9 after 3 steps"], ["loss 0.5 after 3 steps"])
    with pytest.raises(AssertionError):
        assert_same_lines(["loss 0.5 after 3 updates"], ["loss 0.5 after 3 steps"])
    assert_same_lines(["SGD, rate 0.3: 4 updates"], ["SGD, rate 0.1: 4 updates"])
    with pytest.raises(AssertionError):
        assert_same_lines(["SGD, rate 1: 4 updates"], ["SGD, rate 0.1: 4 updates"])
    assert_same_lines(["10 of 16 are low, 3 are lost"], ["10 of 16 are low, 2 are lost"])
    with pytest.raises(AssertionError):
        assert_same_lines(["10 of 16 are low, 4 are lost"], ["10 of 16 are low, 2 are lost"])


def test_the_notation_has_every_setting_of_the_algorithm():
    table = (COURSE / "notation.md").read_text(encoding="utf-8")
    settings = set(re.findall(r"`(\w+)`", KfcPre.__doc__))
    assert {"damping", "clip", "statistics_period"} < settings
    assert all(f"`{name}`" in table for name in settings)
