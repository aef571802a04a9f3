"""A cache as HTML, for notebooks: its numbers, and a map of its cells."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, List

import numpy as np

from .errors import Error

if TYPE_CHECKING:
    from .cache import Cache
    from .inspect import Snapshot

_SQUARES = 512  # of the map, at most
_WIDTH, _SIDE = 64, 9  # squares in a row, pixels
_FREE_COLOUR, _SHARED_COLOUR = "#eeeeee", "#444444"


def html_of(cache: Cache) -> str:
    """A heading, and below it the map and the sequences, unless the cache cannot be read now."""
    from .inspect import Snapshot

    heading = f"<b>{escape(repr(cache)[1:-1])}</b>"
    try:
        snapshot = Snapshot.of(cache)
    except Error as error:
        return f"<div>{heading}: {escape(str(error))}</div>"
    stats = snapshot.stats
    return (
        f"<div>{heading}<br>{stats.cells_used} of {stats.cells} cells used, {stats.cells_shared} "
        f"shared; {stats.bytes / 1e6:.1f} MB; {stats.passes} passes"
        f"<br>{_map(snapshot)}<br>{_legend(snapshot)}</div>"
    )


def _colour(owner: int) -> str:
    """Of a sequence; hues of neighbours lie far apart."""
    return f"hsl({owner * 137 % 360}, 60%, 55%)"


def _map(snapshot: Snapshot) -> str:
    """Cells in order, as squares of one cell or more. A square has the colour of the owner of most
    of its cells, and is as opaque as it is full."""
    from .inspect import FREE, SHARED

    owner, _ = snapshot.cells()
    per_square = -(-len(owner) // _SQUARES)
    squares: List[str] = []
    for number, begin in enumerate(range(0, len(owner), per_square)):
        held = owner[begin : begin + per_square]
        used = held[held != FREE]
        if len(used) == 0:
            fill = _FREE_COLOUR
        else:
            owners, counts = np.unique(used, return_counts=True)
            most = int(owners[counts.argmax()])
            fill = _SHARED_COLOUR if most == SHARED else _colour(most)
            fill += f'" fill-opacity="{0.25 + 0.75 * len(used) / len(held):.2f}'
        row, column = divmod(number, _WIDTH)
        squares.append(
            f'<rect x="{column * _SIDE}" y="{row * _SIDE}" width="{_SIDE - 1}" '
            f'height="{_SIDE - 1}" fill="{fill}"/>'
        )
    rows = -(-len(squares) // _WIDTH)
    each = "a cell" if per_square == 1 else f"{per_square} cells"
    return (
        f'<svg width="{_WIDTH * _SIDE}" height="{rows * _SIDE}" role="img">'
        f"<title>a square is {each}</title>{''.join(squares)}</svg>"
    )


def _legend(snapshot: Snapshot) -> str:
    shown = [*snapshot.sequences.items()][:8]
    parts = [
        f'<span style="color:{_colour(sequence)}">■</span> sequence {sequence}: '
        f"{info.count} positions"
        for sequence, (info, _) in shown
    ]
    if len(snapshot.sequences) > len(shown):
        parts.append(f"{len(snapshot.sequences) - len(shown)} more")
    return (
        ", ".join([*parts, f'<span style="color:{_SHARED_COLOUR}">■</span> shared'])
        + f', <span style="color:{_FREE_COLOUR}">■</span> free'
    )
