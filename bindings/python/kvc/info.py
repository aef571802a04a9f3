"""What the library reports about caches and sequences, as plain records."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SequenceInfo:
    """What a sequence holds, in positions."""

    first: int
    """lowest position held; `next` if it holds none"""
    next: int
    """where it continues: one past the last position"""
    count: int
    """positions held"""
    room: int
    """tokens that it could take now"""
    lost_below: int
    """one more than the highest position that sliding has released; 0: none"""


@dataclass(frozen=True)
class Stats:
    """What a cache holds."""

    state: str
    """"idle", "pass", "reserve" or "poisoned\""""
    cells: int
    """cells in the pool"""
    cells_used: int
    """cells held by at least one sequence"""
    cells_shared: int
    """cells held by more than one"""
    bytes: int
    """memory of this cache, in bytes"""
    passes: int
    """passes committed since it was created"""


@dataclass(frozen=True)
class EncoderInput:
    """What a sequence of an encoder cache sees."""

    position: int
    """of the token that carried it"""
    length: int
    """its positions; 0: no layer of it was put, so cross attention can be skipped"""


@dataclass(frozen=True)
class Run:
    """Neighbouring cells that hold consecutive positions of a sequence."""

    cell: int
    """the first cell, counted from the start of the pool"""
    length: int
    """number of cells"""
    position: int
    """position in the first cell"""
    offset: int
    """pending rotation of the keys: position minus the one they were rotated for"""
