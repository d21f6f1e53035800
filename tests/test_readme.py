"""The pages: their tables are those that our runs left, their links and examples hold.

The README's map of the code is how the rooms of the package rest on each other.
"""

import ast
import re

import pytest
from pages import PAGES, README, ROOT, blocks

from kfcnet.config import load_config
from kfcnet.data import load

TABLES = [
    found
    for text in PAGES.values()
    for found in re.findall(r"<!-- table: (\S+) -->\n((?:\|.*\n)+)", text)
]
LINKS = [
    (page, target)
    for page, text in PAGES.items()
    for target in sorted(set(re.findall(r"\]\((?!https?:|#)([^)]+)\)", text)))
]
MOST_ROOMS = 18  # a newcomer sees no further


def test_the_readme_is_short_and_quotes_recorded_tables():
    assert len(README.splitlines()) < 200
    assert len(TABLES) == sum(text.count("<!-- table:") for text in PAGES.values()) > 0


@pytest.mark.parametrize("path, quoted", TABLES, ids=[path for path, _ in TABLES])
def test_a_quoted_table_is_the_recorded_one(path, quoted):
    assert quoted == (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("page, target", LINKS, ids=map(" ".join, LINKS))
def test_pages_link_to_files_and_headings_that_exist(page, target):
    path, _, heading = target.partition("#")
    file = (ROOT / page).parent / path
    assert file.exists()
    if heading:
        headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert heading in [text.lower().replace(" ", "-") for text in headings]


@pytest.mark.parametrize("page", PAGES)
def test_formulas_are_fenced_as_github_renders_them(page):
    """A backslash before a punctuation mark is lost outside of code."""
    text = re.sub(r"```.*?```|\$`[^`$]+`\$|`[^`]*`", "", PAGES[page], flags=re.DOTALL)
    assert not re.search(r"\$[^$\n]*\\|\\[a-zA-Z]", text)


def imported(path):
    """What of kfcnet a file or the files of a folder import: its modules and packages."""
    for file in path.rglob("*.py") if path.is_dir() else [path]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = (getattr(node, "module", None) or "").split(".")
            if isinstance(node, ast.ImportFrom) and names[0] == "kfcnet":
                yield from names[1:2] or [alias.name for alias in node.names]


def modules():
    """{"kfcnet.ops.cpu.eager": {names of the modules of kfcnet that it imports}, ...}."""
    paths = {}
    for file in (ROOT / "kfcnet").rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    found = {}
    for name, file in paths.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        # What is imported within a function is imported when it is called.
        imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        wanted = {
            whole if whole in paths else node.module
            for node in imports
            if node.module
            for whole in (f"{node.module}.{alias.name}" for alias in node.names)
        }
        found[name] = {other for other in wanted & set(paths) if other != name}
    return found


def circle(graph):
    """Names that lead back to the first of them, or None."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return None
        path.append(name)
        found = next(filter(None, map(visit, sorted(graph[name]))), None)
        path.pop()
        done.add(name)
        return found

    return next(filter(None, map(visit, sorted(graph))), None)


def rooms():
    """Names of the modules and packages at the top of kfcnet/."""
    return {
        path.stem
        for path in (ROOT / "kfcnet").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    } - {"__init__", "__main__"}


def test_the_top_of_the_package_has_few_rooms():
    assert len(rooms()) <= MOST_ROOMS


def test_every_room_rests_on_its_own_row_and_those_before_it():
    text = README[README.index("## Reading the code") : README.index("## Commands")]
    rows = [
        re.findall(r"`([\w]+)(?:\.py|/)`", line.split("|")[1])
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    there = rooms()
    assert sorted(sum(rows, [])) == sorted(there)
    before = set()
    for row in rows:
        before |= set(row)
        for name in row:
            package = ROOT / "kfcnet"
            path = package / name if (package / name).is_dir() else package / f"{name}.py"
            assert set(imported(path)) & there <= before, name


def test_no_module_and_no_room_imports_in_a_circle():
    graph = modules()
    packages = {name for name in graph if any(other.startswith(f"{name}.") for other in graph)}
    assert circle({name: graph[name] - packages for name in graph}) is None
    top = {name: set() for name in rooms()}
    for name, imports in graph.items():
        room = (name.split(".") + [""])[1]
        if room in top:
            top[room] |= {other.split(".")[1] for other in imports if "." in other} - {room}
    assert circle({room: others & set(top) for room, others in top.items()}) is None


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) is None
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def test_the_examples_with_own_images_run_on_the_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    digits = load(load_config("digits_kfc").data)
    names = {"images": digits.train_images[:200], "labels": digits.train_labels[:200]}
    for example in blocks("own images"):
        exec(example, dict(names))
    assert (tmp_path / "results/mine/metrics.csv").exists()
