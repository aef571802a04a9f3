"""The list of views of a cache."""

from __future__ import annotations

from typing import Any, Callable, Generic, Iterable, List, Optional, Sequence, TypeVar, overload

View = TypeVar("View")


class Views(Sequence[Optional[View]], Generic[View]):
    """One view for each layer, or None. Assigning to an element fills the layer."""

    def __init__(
        self, views: Iterable[Optional[View]], assign: Callable[[int, Optional[View], Any], None]
    ) -> None:
        self._views: List[Optional[View]] = list(views)
        self._assign = assign

    @overload
    def __getitem__(self, index: int) -> Optional[View]: ...
    @overload
    def __getitem__(self, index: slice) -> List[Optional[View]]: ...
    def __getitem__(self, index: Any) -> Any:
        return self._views[index]

    def __setitem__(self, index: int, view: Any) -> None:
        if view is not self._views[index]:
            self._assign(index, self._views[index], view)

    def __len__(self) -> int:
        return len(self._views)

    def __eq__(self, other: object) -> bool:
        return self._views == (other._views if isinstance(other, Views) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._views)
