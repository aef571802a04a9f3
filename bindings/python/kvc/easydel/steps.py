"""Steps of a model over a kvc.Cache: each view of a layer takes part in the open one, or begins the
next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Set, Tuple

import numpy as np

from .. import Cache, Operator
from ..errors import BadState, InvalidArgument, ShapeError
from ..passes import Pass

if TYPE_CHECKING:
    import numpy.typing as npt

    from .._sets import Mode

    Bools = npt.NDArray[np.bool_]
    Int32s = npt.NDArray[np.int32]


@dataclass
class Step:
    """The tokens of a step, as the first view gave them."""

    q_len: int
    given: Tuple[Any, ...]
    """the arguments that decide whether another view is of this step"""
    index: Int32s
    """[batch] where the rows continued before the step"""
    arguments: Dict[str, Any]
    """of kvc.Cache.begin_rows()"""
    allowed: Optional[Bools] = None
    """bool [batch, 1, q_len, columns] that the cache's own rules do not know; None: nothing"""
    mask: Optional[Bools] = None
    """what each token sees, made when it is first asked for"""


class Steps:
    """A kvc.Cache, the step that is open in it, and the operators that are bound to its layers."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._step: Optional[Step] = None
        self._pass: Optional[Pass] = None
        self._put: Set[int] = set()
        self._bound: Dict[Tuple[int, str], Any] = {}
        self._operators: Dict[Any, Operator] = {}

    # ---- Steps -----------------------------------------------------------------------------------

    @property
    def step(self) -> Optional[Step]:
        """The open step; None: none is open."""
        return self._step if self._pass is not None and self._pass.open else None

    def has_put(self, layer: int) -> bool:
        """Whether a layer was put in the open step."""
        return self.step is not None and layer in self._put

    def enter(
        self, layer: int, q_len: int, given: Tuple[Any, ...], plan: Callable[[], Step]
    ) -> Tuple[Step, bool]:
        """The open step, if it is what a view wants and lacks the view's layer; else begins another one,
        which commits the open one. Returns it, and whether it was begun."""
        step = self.step
        if step is not None and layer not in self._put:
            if step.q_len == q_len and all(map(_same, step.given, given)):
                return step, False
        step = plan()
        self._begin(step)
        return step, True

    def put(self, layer: int, step: Step, begun: bool, store: Callable[[], Any]) -> Any:
        """Stores a layer of a step. If that fails, a step that was begun for it is aborted."""
        try:
            result = store()
        except BaseException:
            if begun and self.step is step:
                self.cache.abort()
            raise
        self._put.add(layer)
        return result

    def _begin(self, step: Step) -> None:
        self._pass = self.cache.begin_rows(step.q_len, **step.arguments)
        self._step, self._put = step, set()

    def settle(self) -> None:
        """Commits the open step. Raises kvc.BadState if some layer was not put."""
        step = self.step
        if step is None:
            return
        missing = [str(each) for each in range(self.cache.n_layers) if each not in self._put]
        if missing:
            raise BadState(
                f"the open step has no keys and values of layer {', '.join(missing)}: call "
                "concatenate_to_cache() of every view, or commit() or abort() of the cache"
            )
        self.cache.commit()

    def index_of(self, layer: int) -> Int32s:
        """Where rows continue, with the tokens of the open step if the layer was put in it."""
        step = self.step
        if step is not None and layer not in self._put:
            return step.index.copy()
        return self.cache.rows().index

    def allowed_of(self, layer: int) -> Tuple[Step, Bools]:
        """The open step of a layer that was put, and what its tokens see: bool [batch, 1, q_len,
        columns], read-only."""
        step = self.step
        if step is None or layer not in self._put:
            raise BadState("the layer has no open step: call concatenate_to_cache() first")
        if step.mask is None:
            columns = len(self.cache.history(layer))
            mask = np.empty((len(step.index), 1, step.q_len, columns), np.bool_)
            self.cache.mask(layer, mask)
            if step.allowed is not None:
                mask &= step.allowed
            mask.flags.writeable = False
            step.mask = mask
        return step, step.mask

    # ---- Operators -------------------------------------------------------------------------------

    def bind(self, layer: int, mode: Mode, key: Any, make: Callable[[], Optional[Operator]]) -> None:
        """Lets a layer that was put in the open step attend with an operator.

        key   what tells operators apart; None: what kvc chooses
        make  makes the operator of this key

        An operator can be bound only while no pass is open. So the step is aborted, begun again and
        put again from its codes, byte for byte. That happens once for each operator: the first is
        bound to all layers that have none.
        """
        if self._bound.get((layer, mode)) == key:
            return
        if key not in self._operators and key is not None:
            made = make()
            assert made is not None
            self._operators[key] = made
        free = [
            each
            for each in range(self.cache.n_layers)
            if each == layer or (each, mode) not in self._bound
        ]
        operator = None if key is None else self._operators[key]
        step, put = self.step, sorted(self._put)
        assert step is not None
        codes = [self._new_codes(step, each) for each in put]
        self.cache.abort()
        try:
            for each in free:
                self.cache.bind_operator(operator, layers=each, modes=mode)
                self._bound[each, mode] = key
        finally:
            self._begin(step)
            for each, parts in zip(put, codes):
                self.cache.put_codes(each, *parts)
                self._put.add(each)

    def _new_codes(self, step: Step, layer: int) -> List[Any]:
        """Copies of the codes and scales of the step's tokens in a layer, [batch, q_len, …]."""
        views = self.cache.rows_view(layer)
        columns = views.k.shape[1]
        rows = np.arange(len(step.index))[:, None]
        cells = (step.index[:, None].astype(np.int64) + np.arange(step.q_len)) % columns
        return [None if each is None else np.asarray(each)[rows, cells] for each in views]


def tokens_of(name: str, array: Any) -> Tuple[int, int]:
    """(batch, q_len) of an array [batch, q_len, heads, dim]."""
    shape = tuple(np.shape(array))
    if len(shape) != 4:
        raise ShapeError(f"{name} has the shape {shape}; it must be [batch, length, heads, dim]")
    return shape[0], shape[1]


def causality(
    causal_mask: Any,
    index: Int32s,
    ends: Int32s,
    q_len: int,
    columns: int,
    token_types: Any = None,
) -> Tuple[bool, Optional[Bools]]:
    """Whether a step is causal, and what else its tokens may see: bool [batch, 1, q_len, columns].

    causal_mask  None or False: not causal; True: causal; [1 or batch, 1, R, C]: its rows index[b] + i
                 count for token i of row b, and if these are lower triangular the step is causal
    index, ends  [batch] positions of the first token of each row and one past the last one
    """
    mask = getattr(causal_mask, "value", causal_mask)  # a variable of flax
    if mask is None or isinstance(mask, (bool, np.bool_)):
        return bool(mask), None
    mask = np.asarray(mask)
    batch = len(index)
    if mask.ndim != 4 or mask.shape[0] not in (1, batch) or mask.shape[1] != 1:
        raise ShapeError(
            f"causal_mask has the shape {mask.shape}; it must be [1 or {batch}, 1, rows, columns]"
        )
    last = int(ends.max(initial=0))
    n_rows, n_columns = mask.shape[2:]
    if last > n_rows:
        raise InvalidArgument(
            f"causal_mask has {n_rows} rows; a token of this step has the position {last - 1}"
        )
    if last > n_columns:
        raise ShapeError(f"causal_mask has {n_columns} columns; a row of this step reaches {last}")
    width = min(columns, n_columns)
    rows = np.ones((batch, q_len, width), np.bool_)
    relevant = np.zeros_like(rows)
    for b, (begin, end) in enumerate(zip(index.tolist(), ends.tolist())):
        if begin < end:
            rows[b, : end - begin] = mask[b % mask.shape[0], 0, begin:end, :width] != 0
            relevant[b, : end - begin, :end] = True
    positions = index[:, None] + np.arange(q_len)
    if not ((rows != (np.arange(width) <= positions[:, :, None])) & relevant).any():
        return True, None
    if token_types is not None:  # types widen what a mask shows
        types = np.asarray(token_types)
        same = (types[:, :, None] == types[:, None, :]) & (types[:, None, :] != 0)
        for b, begin in enumerate(index.tolist()):
            n = max(min(q_len, width - begin), 0)
            rows[b, :, begin : begin + n] |= same[b, :, :n]
    allowed = np.ones((batch, 1, q_len, columns), np.bool_)
    allowed[:, 0, :, :width] = rows
    return False, allowed


def shown(name: str, mask: Any) -> Any:
    """A mask of bool or integers, from one that may also be of floats 0 and 1."""
    array = np.asarray(mask)
    if array.dtype.kind not in "biu":
        numbers = array.astype(np.float32)
        if not np.isin(numbers, (0, 1)).all():
            raise InvalidArgument(
                f"{name} is of {array.dtype} and has other numbers than 0 and 1: 1 shows, 0 hides"
            )
        array = numbers != 0
    return array


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments are the same, arrays element by element."""
    if one is other:
        return True
    if one is None or other is None:
        return False
    return bool(np.array_equal(one, other))
