"""Train small networks at every rate and damping, and draw them from the records.

python scripts/settings.py --train        # what results/settings/runs.csv lacks: hours
python scripts/settings.py                # the figure and the table, from the records alone
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run the code of this checkout

from kfcnet.reproduce import settings  # noqa: E402
from kfcnet.reproduce.places import places_of  # noqa: E402


def main(argv=None):
    """Read the arguments, train where asked to, and write table and figure."""
    parser = argparse.ArgumentParser(description="Measure and draw how settings hold.")
    parser.add_argument("--train", action="store_true", help="train what has no record yet")
    parser.add_argument("--sets", nargs="+", choices=settings.SETS, default=list(settings.SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--dampings", nargs="+", type=damping, default=list(settings.DAMPINGS), metavar="DAMPING"
    )
    parser.add_argument("--clips", nargs="+", type=float, default=list(settings.CLIPS))
    parser.add_argument("--rates", nargs="+", type=float, default=list(settings.LEARNING_RATES))
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="NAME=PATH",
        help="where data lie: cifar10=... svhn=...",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "settings")
    options = parser.parse_args(argv)
    try:
        places = places_of(options.data)
    except ValueError as error:
        parser.error(f"--data: {error}")
    runs = options.out / "runs.csv"
    if options.train:
        grid = options.seeds, options.dampings, options.clips, options.rates
        settings.measure(runs, options.sets, *grid, places)
    rows = settings.read(runs) if runs.exists() else []
    if not rows:
        parser.error(f"{runs} has no runs to draw: --train makes them")
    tables = {"best": settings.table(rows), "failures": settings.failure_table(rows)}
    if (candidates := options.out / "candidates.csv").exists():
        tables["candidates"] = settings.candidate_table(settings.read(candidates))
    for name, text in tables.items():
        (options.out / f"{name}.md").write_text(text, encoding="utf-8")
    settings.draw(rows, options.out / "settings.png")


def damping(text):
    """A damping from text: a number, or "auto"."""
    return text if text == "auto" else float(text)


if __name__ == "__main__":
    main()
