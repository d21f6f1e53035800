"""Titles that fit their figure: a text that is too wide goes on on the next line."""

import re

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

TITLE_SIZE = 8


def add_title(figure, text):
    """Write the title above a figure or a part of one."""
    title = _broken(text, _points(figure), TITLE_SIZE)
    figure.suptitle(title, fontsize=TITLE_SIZE)


def _points(figure):
    """The width of a figure or of a part of one, in points."""
    return 72 * figure.bbox.width / figure.dpi


def _broken(text, room, size):
    """The text, with line breaks where it is wider than `room` points in a font of this size."""
    font = FontProperties(size=size)

    def fits(line):
        width, _, _ = text_to_path.get_text_width_height_descent(line.rstrip(), font, ismath=False)
        return width <= room

    lines = []
    for line in text.split("\n"):
        lines.append("")
        for part in _parts(line, fits):
            if fits(lines[-1] + part):
                lines[-1] += part
            else:
                lines.append(part)
    return "\n".join(line.rstrip() for line in lines)


def _parts(text, fits, breaks=(", ", " ", "-", "")):
    """The text in parts that fit, which end with commas, or with the next of `breaks`."""
    if fits(text) or not breaks:
        return [text]
    parts = re.split(f"(?<={breaks[0]})", text)
    return [part for whole in parts for part in _parts(whole, fits, breaks[1:])]
