"""A cache as HTML, for notebooks: its numbers, a map of its cells, and what sequences hold."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, List

import numpy as np

from .errors import Error
from .inspect import FREE, SHARED, WITH_POSITIONS, WITH_STATES, Snapshot

if TYPE_CHECKING:
    from .cache import Cache

_SQUARES = 512  # of the map, at most
_WIDTH, _SIDE = 64, 9  # squares in a row, pixels
_FREE_COLOUR, _SHARED_COLOUR = "#eeeeee", "#444444"


def html_of(cache: Cache) -> str:
    """A heading, and below it what the cache holds, unless it cannot be read now."""
    heading = f"<b>{escape(repr(cache)[1:-1])}</b>"
    try:
        snapshot = Snapshot.of(cache)
    except Error as error:
        return f"<div>{heading}: {escape(str(error))}</div>"
    return f"<div>{heading}<br>{_body(snapshot)}</div>"


def _body(snapshot: Snapshot) -> str:
    stats = snapshot.stats
    has_states = snapshot.kind in WITH_STATES
    unit = "slots" if has_states else "cells"
    numbers = (
        f"{stats.cells_used} of {stats.cells} {unit} used, {stats.cells_shared} "
        f"shared; {stats.bytes / 1e6:.1f} MB; {stats.passes} passes"
    )
    if snapshot.storage:
        numbers += f"<br>{escape(snapshot.storage)}"
    if snapshot.kind == "wrapper":
        children = [
            f"<li>child {i}, {child.kind}: {_body(child)}</li>"
            for i, child in enumerate(snapshot.children)
        ]
        return f"{numbers}<ul>{''.join(children)}</ul>{_legend(snapshot)}"
    if has_states:
        return f"{numbers}<br>{_legend(snapshot)}"
    return f"{numbers}<br>{_map(snapshot)}<br>{_legend(snapshot)}"


def _colour(owner: int) -> str:
    """Of a sequence; hues of neighbours lie far apart."""
    return f"hsl({owner * 137 % 360}, 60%, 55%)"


def _map(snapshot: Snapshot) -> str:
    """Cells in order, as squares of one cell or more. A square has the colour of the owner of most
    of its cells, and is as opaque as it is full."""
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
    shown = [*snapshot.sequences][:8]
    parts = [
        f'<span style="color:{_colour(sequence)}">■</span> sequence {sequence}: '
        f"{_held(snapshot, sequence)}"
        for sequence in shown
    ]
    if len(snapshot.sequences) > len(shown):
        parts.append(f"{len(snapshot.sequences) - len(shown)} more")
    if snapshot.kind in (*WITH_POSITIONS, "encoder"):
        parts.append(f'<span style="color:{_SHARED_COLOUR}">■</span> shared')
        parts.append(f'<span style="color:{_FREE_COLOUR}">■</span> free')
    return ", ".join(parts)


def _held(snapshot: Snapshot, sequence: int) -> str:
    """What a sequence holds, in words."""
    info, _ = snapshot.sequences[sequence]
    if snapshot.kind in WITH_POSITIONS:
        return f"{info.count} positions"
    if snapshot.kind == "encoder":
        seen = snapshot.inputs.get(sequence)
        return f"an input of {seen.length} at {seen.position}" if seen else "no input"
    if snapshot.kind in WITH_STATES:
        places = ", ".join(map(str, snapshot.checkpoints[sequence]))
        approximate = ", approximate" if info.approximate else ""
        return f"{info.next} positions{approximate}, checkpoints at {places or 'none'}"
    holders = ", ".join(map(str, snapshot.holders(sequence)))
    back = snapshot.back.get(sequence, 0)
    return f"{info.next} positions, back to {back}" + (f" (child {holders})" if holders else "")
