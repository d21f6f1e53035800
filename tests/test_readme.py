"""The README's tables are the ones that our own runs left, letter for letter."""

import re
from pathlib import Path

import pytest

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
