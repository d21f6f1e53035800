"""The ladder of kernels: a rung is one idea, and docs/ladder.md says what it compiles to."""

import re
from collections import Counter

import ladder
import nvrtc
import pytest
import sass
import specialisations
from cuda_on_cpu import missing

from kfcnet.ops.cuda import kernels

compiles = pytest.mark.skipif(
    bool(nvrtc.missing() or sass.missing() or missing()),
    reason=str(nvrtc.missing() or sass.missing() or missing()),
)
MOST_NEW_LINES = 50  # of a rung's code

if nvrtc.missing() is None:
    from scripts import render_kernels

    PAGE = render_kernels.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("rung", ladder.RUNGS, ids=lambda rung: rung.file)
def test_a_rung_says_what_it_costs_what_it_gains_and_what_is_left(rung):
    header = rung.header
    assert header.startswith(f"kernels/{rung.file}.cu: ")
    assert f", rung {rung.number}: " in header
    assert f"\nBefore ({rung.after}): " in header or rung.number == 1
    assert header.count("\nIdea: ") == header.count("\nLeft: ") == 1
    left = header[header.index("\nLeft: ") :].split("\n\n")[0]
    assert f" Next: {rung.before}." in left if rung.before else "Next:" not in left


@pytest.mark.parametrize("rung", [r for r in ladder.RUNGS if r.after], ids=lambda rung: rung.file)
def test_a_rung_changes_few_lines(rung):
    new, _ = rung.changed
    assert 0 < new <= MOST_NEW_LINES


def test_every_product_and_convolution_forward_is_a_rung():
    found = {path.stem for name in ladder.LADDERS for path in kernels.folder().glob(f"{name}_*.cu")}
    assert found == {rung.file for rung in ladder.RUNGS}


def rows(name):
    """The rows of a ladder in the page; skips where another compiler made them."""
    if render_kernels.part(PAGE, "compiler") != render_kernels.compiler():
        pytest.skip("the page was written with another version of the compiler")
    lines = render_kernels.part(PAGE, name).splitlines()[2:]
    return [tuple(line.strip("| ").split(" | ")) for line in lines]


@pytest.mark.slow
@compiles
@pytest.mark.parametrize("name", ladder.LADDERS)
def test_the_counts_of_the_page_are_those_of_the_compiled_rungs(name):
    columns = len(render_kernels.COLUMNS) - 1
    assert [row[:columns] for row in rows(name)] == render_kernels.compiled(name)


@pytest.mark.slow
@compiles
@pytest.mark.parametrize("name", ladder.LADDERS)
def test_the_conflicts_of_the_page_are_those_of_the_emulated_rungs(name):
    assert rows(name) and render_kernels.part(PAGE, name) == render_kernels.table(name)


@pytest.mark.slow
@compiles
@pytest.mark.parametrize("name", ladder.LADDERS)
def test_no_rung_issues_more_than_the_one_before_but_where_the_page_says_so(name):
    issued = [row["instructions"] for row in render_kernels.counts(name)]
    assert all(0 < count < 8 for count in issued)
    for before, rung, count in zip(issued, ladder.LADDERS[name][1:], issued[1:], strict=False):
        more = rung.file in ("conv_forward_tiled", "conv_forward_tf32")
        assert (count > before) if more else (count < 1.01 * before), rung.file


@pytest.mark.slow
@compiles
def test_what_the_page_says_of_the_product_s_rungs_shows_in_their_counts():
    of = dict(zip(ladder.MATMUL, render_kernels.counts("matmul"), strict=True))
    assert of["tiled"]["shared reads"] > 1 > 3 * of["thread_tile"]["shared reads"]
    assert of["vector"]["shared reads"] == of["thread_tile"]["shared reads"] / 4
    assert of["prefetch"]["registers"] > 1.5 * of["vector"]["registers"]
    assert of["prefetch"]["warps"] < of["vector"]["warps"] == of["async"]["warps"]
    assert of["mma"]["share"] < of["register"]["share"]
    assert of["mma"]["instructions"] < of["register"]["instructions"] / 3


@pytest.mark.slow
@compiles
def test_what_the_page_says_of_the_convolution_s_rungs_shows_in_their_counts():
    of = dict(zip(ladder.CONV_FORWARD, render_kernels.counts("conv_forward"), strict=True))
    assert of["packed"]["shared reads"] < of["thread_tile"]["shared reads"] / 2
    assert of["fragments"]["shared reads"] < of["mma"]["shared reads"]
    assert of["rounded"]["instructions"] < of["fragments"]["instructions"]
    assert of["ldmatrix"]["shared reads"] < of["rounded"]["shared reads"] / 2


def test_the_instance_is_what_training_launches():
    launched = dict(BIAS=1, RELU=0, ACCUMULATE=0)
    wanted = ladder.CONV_FORWARD["tf32"] | ladder.CONV2.constants | launched
    (launched,) = (
        found.launches["conv_forward_tf32"]
        for found in specialisations.everything(True)
        if found.file == "conv_forward_tf32" and dict(found.constants) == wanted
    )
    assert launched == (ladder.FORWARD.threads, ladder.FORWARD.shared)


@compiles
def test_the_page_has_every_macro_of_the_instance_and_what_the_kernel_makes_of_them():
    assert set(render_kernels.MACROS) == set(render_kernels.instance())
    for name in ("macros", "derived", "followed"):
        assert render_kernels.part(PAGE, name) == render_kernels.PARTS[name]()
    threads, floats = render_kernels.values(
        ["THREADS", "input_floats<PITCH>() + WEIGHT_STAGES * STAGE"]
    )
    assert (threads, 4 * floats) == (ladder.FORWARD.threads, ladder.FORWARD.shared)


@compiles
def test_the_lanes_of_a_fragment_read_32_banks_as_the_figure_shows(tmp_path):
    assert sorted(render_kernels.banks()) == list(range(32))
    render_kernels.draw(tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").stat().st_size > 10_000
    (alt,) = re.findall(r"!\[([^]]+)\]\(ladder\.png\)", PAGE)
    height, width, rows, columns = render_kernels.values(
        ["HEIGHT", "WIDTH", "IN_ROWS", "IN_COLUMNS"]
    )
    assert f"{height} x {width} image" in alt and f"{rows} x {columns} pixels" in alt


def loop(depth, looping=None, **always):
    sometimes = Counter(looping)
    return sass.Loop(Counter(always), sometimes, depth, sometimes)


def test_a_step_is_as_many_rounds_of_the_main_loop_as_make_its_multiply_adds():
    around, main = loop(1, dict(LDG=9), BAR=2, other=5), loop(2, FFMA=4, LDS=2)
    copies = loop(2, LDGSTS=4)
    assert ladder.one_step([around, copies, main], 12) == dict(BAR=2, other=5, FFMA=12, LDS=6)
    assert ladder.one_step([loop(1, other=5), main], 12) == dict(FFMA=4, LDS=2)
    with pytest.raises(ValueError, match="no whole rounds"):
        ladder.one_step([around, copies, main], 13)


@compiles
def test_the_floor_of_a_step_is_that_of_what_it_launches():
    readme = render_kernels.README.read_text(encoding="utf-8")
    assert render_kernels.part(readme, "floor") == render_kernels.floor()
