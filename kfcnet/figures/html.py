"""A page of Markdown as one HTML file that needs nothing else: no network, no other file."""

import base64
import re
from pathlib import Path

import markdown

from kfcnet.runs.files import write_text

TYPES = {".png": "image/png", ".svg": "image/svg+xml"}

STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --page: #fff; --line: #d8d8d8; --soft: #f4f4f2;
  --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e3; --page: #17181a; --line: #3a3c40; --soft: #212327; --link: #7db8f0; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--text); background: var(--page);
  margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; margin: 2em 0 .6em; }
h1 { margin-top: .5em; }
a { color: var(--link); }
code { font: .9em ui-monospace, monospace; background: var(--soft); padding: .1em .3em; }
figure { margin: 1.2em 0; }
figure img { display: block; width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { font-size: .85em; margin-top: .4em; }
.table { overflow-x: auto; margin: 1em 0; }
table { border-collapse: collapse; font-size: .85em; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .35em .7em; vertical-align: top;
  overflow-wrap: normal; min-width: 4.5em; }
td:first-child { min-width: 11em; }
th { background: var(--soft); text-align: left; }
"""


def write_page(text, path):
    """Write Markdown as the file `path`, with the pictures that it names beside it inlined.

    An image becomes a figure with its text as caption; HTML in the Markdown is text. Raises
    WriteError.
    """
    converter = markdown.Markdown(extensions=["tables", "sane_lists"], output_format="html")
    converter.preprocessors.deregister("html_block")  # names of runs and data sets may have a "<"
    converter.inlinePatterns.deregister("html")
    body = converter.convert(text)
    title = re.search(r"<h1>(.*?)</h1>", body)
    body = re.sub(r"(<table>.*?</table>)", r'<div class="table">\1</div>', body, flags=re.DOTALL)
    body = re.sub(
        r'<p><img alt="([^"]*)" src="([^"]*)" */?></p>',
        lambda found: _figure(*found.groups(), Path(path).parent),
        body,
    )
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title[1] if title else 'kfcnet'}</title><style>{STYLE}</style>"
    )
    write_text(
        path, f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'
    )


def _figure(caption, source, folder):
    picture = folder / source
    data = base64.b64encode(picture.read_bytes()).decode()
    return (
        f'<figure><img alt="{caption}" src="data:{TYPES[picture.suffix]};base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
