"""The site: it is built without a network, and nothing on it leads nowhere."""

import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
pytest.importorskip("latex2mathml", reason="the extra `docs` is not installed")

import browser  # noqa: E402

from scripts import build_site  # noqa: E402


class Page(HTMLParser):
    """What a page links to, loads and can be linked at; and its pictures without a text."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.ids, self.silent = [], [], set(), []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids.update(filter(None, (given.get("id"), given.get("name"))))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in ("script", "img") and given.get("src"):
            self.loads.append(given["src"])
        if tag == "link" and given.get("rel") != "canonical":
            self.loads.append(given["href"])
        if tag == "img" and not given.get("alt"):
            self.silent.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site."""
    folder = tmp_path_factory.mktemp("site")
    return build_site.main(folder / "pages", folder / "site")


@pytest.fixture(scope="module")
def pages(site):
    """{path: Page} of the site."""
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def broken(pages):
    """[(page, link)] that lead nowhere on the site."""
    found = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            if re.match(r"[a-z]+:|//", link) or path.name == "404.html":
                continue
            name, _, fragment = unquote(link).partition("#")
            target = (path.parent / name).resolve() if name else path
            if not target.exists() or (fragment and fragment not in pages[target].ids):
                found.append((path.name, link))
    return found


def test_every_link_and_picture_of_the_site_is_there(pages):
    assert len(pages) > 15 and broken(pages) == []


def test_the_site_loads_nothing_from_elsewhere(pages):
    for path, page in pages.items():
        assert not [load for load in page.loads if re.match(r"[a-z]+:|//", load)], path


def test_formulas_are_mathml_and_headings_have_none(pages):
    formulas = 0
    for path, page in pages.items():
        formulas += page.text.count("<math")
        assert not re.search(r"formula\d+mark|```math|\$`", page.text), path
        assert not [name for name in page.ids if "formula" in name], path
    assert formulas > 150


def test_pictures_of_the_course_have_a_text(pages):
    course = [page for path, page in pages.items() if path.parent.name == "course"]
    assert len(course) > 7 and not [page.silent for page in course if page.silent]


def test_a_browser_draws_all_pictures_and_formulas_in_windows_of_any_width(site, pages, tmp_path):
    names = [path.relative_to(site).as_posix() for path in pages if path.name != "404.html"]
    assert browser.faults(site, names, tmp_path) == {}


def test_a_browser_sees_a_lost_picture_an_unread_formula_and_a_page_too_wide(tmp_path):
    (tmp_path / "bad.html").write_text(
        "<img src='none.png'><math><mtext>\\alpha</mtext></math>"
        "<math><mi></mi></math><div style='width: 700px'>wide</div>"
    )
    (tmp_path / "good.html").write_text("<math><mi>x</mi></math>")
    assert browser.faults(tmp_path, ["bad.html", "good.html"], tmp_path / "profile") == {
        "bad.html": [
            "at 390 pixels: the page is 708 wide",
            "no picture: none.png",
            "a formula with a backslash",
            "a formula without a size",
        ]
    }


def test_a_broken_link_and_an_unknown_formula_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(build_site, "ROOT", tmp_path)
    page = tmp_path / "README.md"
    page.write_text("[there](nothing.md)\n")
    with pytest.raises(FileNotFoundError, match="README.md links to nothing.md"):
        build_site.gather([page], tmp_path / "out")
    with pytest.raises(ValueError, match="cannot be read"):
        build_site.mathml(r"\nosuchcommand x", "inline")
    with pytest.raises(ValueError, match="cannot be read"):
        build_site.mathml(r"\mathbf{AB}", "inline")


def test_a_folder_that_is_no_site_is_left_alone(site, tmp_path):
    assert (site / ".nojekyll").exists()
    kept = tmp_path / "docs" / "mine.md"
    kept.parent.mkdir()
    kept.write_text("not a page of the site")
    with pytest.raises(FileExistsError, match="something else than a site"):
        build_site.main(tmp_path / "pages", kept.parent)
    assert kept.exists()


def test_norms_enclose_closely_and_functions_stand_apart():
    norm = build_site.mathml(r"|v|^2", "inline")
    assert norm.count('lspace="0" rspace="0"') == 2
    assert "<mspace" in build_site.mathml(r"\log p", "inline")


def test_marks_stand_for_formulas_and_leave_code_alone():
    formulas = []
    text = "$`a`$ and `$` and $`b`$\n\n```math\nc\n```\n\n```python\nx = '$`d`$'\n```\n"
    marked = build_site.with_marks(text, formulas)
    assert marked.startswith("formula0mark and `$` and formula1mark\n\n\nformula2mark\n")
    assert marked.endswith("```python\nx = '$`d`$'\n```\n")
    assert [re.sub(r"<[^>]+>", "", formula) for formula in formulas] == ["a", "b", "c"]
