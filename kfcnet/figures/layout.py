"""Titles and legends that fit their figure, and whose texts are literal: a `$` is that character.

A text that is too wide goes on on the next line, and a large legend makes its figure larger.
"""

import re

import numpy as np
from matplotlib import rcParams
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

TITLE_SIZE = 8
HEIGHT_BELOW, WIDTH_BESIDE, HEIGHT_BESIDE = 1.25, 1.6, 2.0
"""Inches of a legend, below the panels or beside them, for which every figure has room."""


def add_title(figure, text):
    """Write the title above a figure or a part of one."""
    # Hinted glyphs are a little wider than their outlines, which `_broken` measures.
    title = _broken(text, 0.99 * _points(figure), TITLE_SIZE)
    figure.suptitle(title, fontsize=TITLE_SIZE, parse_math=False)


def add_legend(figure, handles, columns, handlelength=2.0):
    """Add a legend of labelled artists below the panels, in `columns` or as many as fit."""
    legend = _legend(figure, handles, _points(figure), "lower center", handlelength, columns)
    box = legend.get_window_extent()
    if columns > 1 and box.width > figure.bbox.width:
        legend.remove()
        add_legend(figure, handles, columns - 1, handlelength)
    else:
        _grow(figure, 0, box.height / figure.dpi - HEIGHT_BELOW)


def add_legend_beside(figure, handles):
    """Add a legend of labelled artists to the right of the panels."""
    box = _legend(figure, handles, _points(figure) / 2, "right center").get_window_extent()
    _grow(figure, box.width / figure.dpi - WIDTH_BESIDE, box.height / figure.dpi - HEIGHT_BESIDE)


def _legend(figure, handles, room, place, handlelength=2.0, columns=1):
    """A legend outside the panels, of which a column has at most `room` points."""
    size = FontProperties(size=rcParams["legend.fontsize"]).get_size_in_points()
    room -= (handlelength + 3) * size  # for the handle and the pads
    legend = figure.legend(
        handles,
        [_broken(handle.get_label(), room, size) for handle in handles],
        loc=f"outside {place}",
        ncols=columns,
        handlelength=handlelength,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return legend


def _grow(figure, width, height):
    """Make a figure larger by a width and a height in inches, where they are positive."""
    figure.set_size_inches(figure.get_size_inches() + np.maximum([width, height], 0))


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
