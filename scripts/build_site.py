"""Build the site of all pages in build/site, from README.md and docs/, without a network.

    python scripts/build_site.py && python -m http.server -d build/site
    python scripts/build_site.py --out ../pages/docs     # where a host of pages serves it from

Pages keep their paths, so that a link holds on the site as it does in the repository. Files that
pages link to are copied; a folder gets a page that lists it. Formulas become MathML, which browsers
draw without a script. A link to nothing or a formula that cannot be read is an error. What a site
held before is replaced. Needs `pip install -e '.[docs]'`.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).resolve().parents[1]
PAGES, SITE = ROOT / "build" / "site_pages", ROOT / "build" / "site"
AS_IT_IS = (
    ".nojekyll"  # tells GitHub Pages to serve the files unchanged, and us that this is a site
)

FORMULA = r"```math\n(?P<block>.*?)\n\s*```|\$`(?P<inline>[^`]+)`\$"
TOKEN = re.compile(rf"{FORMULA}|(?P<code>```.*?```|`[^`\n]+`)", flags=re.DOTALL)
MARK = "formula{}mark"  # stands for a formula until Markdown is HTML
LINK = r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))"
BOLD = {"\\Omega": "𝛀", "\\Gamma": "𝚪", "\\Psi": "𝚿"}  # MathML Core has no bold Greek of its own
SPELLINGS = {"\\arg": "\\mathrm{arg}\\,", "{aligned}": "{align*}", "\\!": ""}
FUNCTION = r"\\(log|dim) "  # it stands apart from its argument
BAR = '<mo stretchy="false">&#x0007C;</mo>'
CLOSE_BAR = BAR.replace(">", ' lspace="0" rspace="0">', 1)  # of a norm: beside what it encloses


def mathml(formula, display):
    """A formula in TeX as MathML; raises ValueError for a command that is not known."""
    for letter, bold in BOLD.items():
        formula = formula.replace(f"\\mathbf{{{letter}}}", bold)
    for ours, theirs in SPELLINGS.items():
        formula = formula.replace(ours, theirs)
    formula = re.sub(FUNCTION, r"\\\1\\,", formula)
    element = convert(formula, display=display).replace(BAR, CLOSE_BAR)
    several = re.search(r"\\mathbf\{[^{}]{2,}\}", formula)  # of which the converter makes none bold
    if several or "\\" in element or "<mi>&</mi>" in element:
        raise ValueError(f"the formula cannot be read: {formula}")
    return element


def with_marks(text, formulas):
    """Markdown with a mark in place of each formula, whose MathML is appended to `formulas`."""

    def mark(found):
        if found["code"]:
            return found[0]
        if found["block"]:
            formulas.append(f'<div class="formula">{mathml(found["block"], "block")}</div>')
            return f"\n{MARK.format(len(formulas) - 1)}\n"
        formulas.append(mathml(found["inline"], "inline"))
        return MARK.format(len(formulas) - 1)

    return TOKEN.sub(mark, text)


def put_formulas(site, formulas):
    """Replace the marks in all pages of a site; a formula of its own is no paragraph."""
    for path in site.rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        page = re.sub(rf"<p>({MARK.format('[0-9]+')})</p>", r"\1", page)
        page = re.sub(MARK.format("([0-9]+)"), lambda found: formulas[int(found[1])], page)
        path.write_text(page, encoding="utf-8")


def targets(text):
    """What a page links to in this repository: paths as they are written."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [found[1] for found in re.findall(LINK, prose) if not re.match(r"\w+:|/", found[1])]


def gather(start, folder):
    """Copy pages and all they link to into a folder, at their own paths; their formulas in MathML.

    Raises FileNotFoundError naming page and target for a link to nothing.
    """
    todo, done, formulas = list(start), set(), []
    while todo:
        path = todo.pop()
        if path in done:
            continue
        done.add(path)
        out = folder / path.relative_to(ROOT)
        out.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            if (path / "README.md").exists():
                todo.append(path / "README.md")
            else:
                out.mkdir(exist_ok=True)
                (out / "index.md").write_text(listing(path), encoding="utf-8")
        elif path.suffix == ".md":
            text = path.read_text(encoding="utf-8")
            todo += linked(path, text)
            text = with_pages_of_folders(path, text)
            out.write_text(with_marks(text, formulas), encoding="utf-8")
        else:
            shutil.copy(path, out)
    return formulas


def linked(path, text):
    """Files and folders that a page links to; raises FileNotFoundError like `gather`."""
    for target in targets(text):
        found = (path.parent / target).resolve()
        if not found.exists() or not found.is_relative_to(ROOT):
            raise FileNotFoundError(f"{path.relative_to(ROOT)} links to {target}")
        yield found


def with_pages_of_folders(path, text):
    """A page's text, its links to folders leading to the folders' pages."""
    return re.sub(LINK, lambda found: found[1] + page_of(path, found[2]) + found[3], text)


def page_of(path, target):
    """The target of a link on a page: of a folder its page."""
    linked = (path.parent / target).resolve()
    if re.match(r"\w+:|/", target) or not linked.is_dir():
        return target
    name = "README.md" if (linked / "README.md").exists() else "index.md"
    return f"{target.rstrip('/')}/{name}"


def listing(path):
    """A page with the names of what is in a folder."""
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith((".", "__")))
    return "\n".join([f"# {path.name}", "", *(f"- `{name}`" for name in names), ""])


def add_pages(nav, paths):
    """Put pages of docs/ that the menu lacks at the end of its section Use."""
    (use,) = [entry["Use"] for entry in nav if "Use" in entry]
    use += [path for path in paths if path not in str(nav)]


def main(pages=PAGES, site=SITE):
    """Gather and build; the folder of the site.

    Raises FileExistsError for a folder that holds something else than a site: it would be lost.
    """
    if site.exists() and any(site.iterdir()) and not (site / AS_IT_IS).exists():
        raise FileExistsError(f"{site} holds something else than a site: give another folder")
    site.mkdir(parents=True, exist_ok=True)
    (site / AS_IT_IS).touch()  # MkDocs leaves hidden files alone
    shutil.rmtree(pages, ignore_errors=True)
    docs = sorted((ROOT / "docs").rglob("*.md"))
    formulas = gather([ROOT / "README.md", *docs, ROOT / "kernels" / "README.md"], pages)
    shutil.copy(ROOT / "docs" / "site.css", pages)
    config = load_config(str(ROOT / "mkdocs.yml"), docs_dir=str(pages), site_dir=str(site))
    add_pages(config.nav, [path.relative_to(ROOT).as_posix() for path in docs])
    build(config)
    put_formulas(site, formulas)
    return site


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the site of all pages, without a network.")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=SITE, help="(default: build/site)"
    )
    folder = main(site=parser.parse_args().out.resolve())
    print(f"open {folder / 'index.html'}", file=sys.stderr)
