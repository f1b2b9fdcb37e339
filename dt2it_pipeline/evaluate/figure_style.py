"""How all figures look: colours, fonts, and the bytes of an SVG.

Colours are Okabe and Ito's, which stay apart for colour-blind readers; shapes differ as well, so that print in black
and white can be read.
"""

from __future__ import annotations

import io
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#22303c"
GREY = "#8a949c"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7A6A00", "#000000")
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#b9c1c7",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#e3e8eb",
    "legend.frameon": False,
    "svg.hashsalt": "dt2it",  # the same figure gives the same bytes
    "text.parse_math": False,  # names come from data: a dollar sign is a dollar sign
}


def svg_bytes(figure: Figure) -> bytes:
    """A drawn figure as SVG; the same figure gives the same bytes where it was drawn within `STYLE`."""
    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return buffer.getvalue()
