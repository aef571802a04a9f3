"""Several caches that move as one."""

from __future__ import annotations

import weakref
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    Iterable,
    List,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
    Union,
    cast,
)

import numpy as np

from . import kvc_capi as _capi
from ._handles import CacheHandle, Shape, checks_names, integer
from .errors import InvalidArgument, InvalidHandle
from .layers import Layer, caches_of, names_layer, names_layers

if TYPE_CHECKING:
    from typing import Type

    from ._arrays import Dtype
    from .cache import Cache
    from .device import Device

    Self = TypeVar("Self", bound="Wrapping")

# What the kinds that store keys and values have in common; 0 where the children differ.
_OF_ATTENTION = ("n_kv_heads", "head_dim_k", "head_dim_v", "dtype_k", "dtype_v")


class Wrapping(CacheHandle):
    """The part of kvc.Cache that makes one cache of several."""

    @classmethod
    def wrap(
        cls: Type[Self],
        children: Sequence[Cache],
        layers: Optional[Iterable[Tuple[Union[int, Cache], int]]] = None,
    ) -> Self:
        """Makes one cache of several that move as one: a window beside a full cache, an encoder beside
        a decoder, recurrent layers beside attention.

        children  1 to 16 caches of any kind but "wrapper", on one device, which are empty and in no
                  pass
        layers    for each layer of the new cache the child that owns it, as an index or as itself,
                  and its number there; several layers may name the same. None: all layers of the
                  first child, then all of the second …

        Calls that open and end passes or change sequences are the wrapper's: it asks all children,
        then all do it or none does. A child raises BadState for them as long as it is wrapped. All
        else works on the wrapper, by its layers, and on the children, by theirs. The wrapper can
        resume where every child can, and it has the sequences that every child has. Calls about one
        cache (encoder_share, encoder_query, state_layout, state_slots, checkpoint_list) reach the only
        child that has them.

        Closing the wrapper leaves its children as they are, and they can be used again. A child may
        be closed first: the wrapper keeps what it needs of it.

        Raises InvalidArgument, BadState (a child is wrapped already, not empty, or in a pass),
        NotSupported (a wrapper as a child), DeviceMismatch, OutOfMemory.
        """
        children = tuple(children)
        for index, child in enumerate(children):
            if not isinstance(child, CacheHandle):
                kind = type(child).__name__
                raise TypeError(f"children[{index}] must be a kvc.Cache, not {kind}")
            if child._handle is None:
                raise InvalidHandle(f"children[{index}] is closed: create another")
        places = _places(children, layers)
        wrapper = cls.__new__(cls)
        wrapper._handle = None
        wrapper._pass = 0
        wrapper._handle = _capi.kvc_cache_wrap(
            [child._handle for child in children],
            np.array([child for child, _ in places], dtype=np.int32),
            np.array([layer for _, layer in places], dtype=np.int32),
        )
        wrapper._shape = _shape_of_all([child._shape for child in children], len(places))
        wrapper._children = children
        wrapper._place, wrapper._device = children[0]._place, children[0]._device
        wrapper._note_stream(children[0]._stream)
        for child in children:
            child._wrapper = weakref.ref(wrapper)
        wrapper._owners = [(children[child], layer) for child, layer in places]
        return wrapper

    @classmethod
    @checks_names
    def from_layers(
        cls: Type[Self],
        layers: Iterable[Layer],
        *,
        capacity: Optional[int] = None,
        dtype: Dtype = None,
        max_sequences: int = 1,
        max_batch: int = 512,
        strict: bool = False,
        zero_on_free: bool = False,
        prefault: bool = False,
        device: Optional[Device] = None,
    ) -> Self:
        """Makes the caches that a model's layers need, and one of them all, whose layer i is
        layers[i].

        layers           a kvc.Layer for each, which describes it. Equal ones share a cache
        capacity, dtype  of those with keys and values that give none of their own. A layer of an
                         encoder always gives its own capacity
        max_sequences …  of all, as in kvc.Cache()

        Gemma 3: five windows, then a layer that sees everything

            window = kvc.Layer(n_kv_heads=1, head_dim=256, sliding_window=512)
            full = kvc.Layer(n_kv_heads=1, head_dim=256)
            cache = kvc.Cache.from_layers(
                [full if i % 6 == 5 else window for i in range(18)], capacity=32768, dtype="f16"
            )

        Qwen3-Next: three gated delta rules, then attention

            delta = kvc.Layer(
                kind="recurrent", state_shape=(32, 128, 128), conv_channels=8192, conv_dim=3
            )
            full = kvc.Layer(n_kv_heads=2, head_dim=256)
            cache = kvc.Cache.from_layers([delta, delta, delta, full] * 12, capacity=65536)

        Whisper: self attention is layer 2 * i, cross attention layer 2 * i + 1

            own = kvc.Layer(n_kv_heads=6, head_dim=64, capacity=448)
            cross = kvc.Layer(kind="encoder", n_kv_heads=6, head_dim=64, capacity=1500)
            cache = kvc.Cache.from_layers([own, cross] * 4, max_sequences=8, dtype="f16")

        The caches are `children` of the result, and close with it. wrap() says how they work
        together.
        """
        arguments, places = caches_of(layers, capacity, dtype)
        common = {
            "max_sequences": max_sequences,
            "max_batch": max_batch,
            "strict": strict,
            "zero_on_free": zero_on_free,
            "prefault": prefault,
            "device": device,
        }
        made: List[Cache] = []
        try:
            for child, each in enumerate(arguments):
                with names_layer(places, child):
                    made.append(_cache_class()(**each, **common))
            with names_layers(places):
                wrapper = cls.wrap(made, places)
        except BaseException:
            for cache in made:
                cache.close()
            raise
        wrapper._owns_children = True
        return wrapper

    @staticmethod
    @checks_names
    def layers_memory_bytes(
        layers: Iterable[Layer],
        *,
        capacity: Optional[int] = None,
        dtype: Dtype = None,
        max_sequences: int = 1,
        max_batch: int = 512,
        device: Optional[Device] = None,
    ) -> int:
        """The bytes that from_layers() with these arguments would reserve. Allocates nothing."""
        common = {"max_sequences": max_sequences, "max_batch": max_batch, "device": device}
        arguments, places = caches_of(layers, capacity, dtype)
        total = 0
        for child, each in enumerate(arguments):
            with names_layer(places, child):
                total += _cache_class().memory_bytes(**each, **common)
        return total

    @property
    def children(self) -> Tuple[Cache, ...]:
        """The caches of a wrapper, in order; empty for any other kind."""
        return self._children

    def owner(self, layer: int) -> Tuple[Cache, int]:
        """The child of a wrapper that owns a layer, and the layer's number there; for any other kind
        the cache itself and the layer."""
        number = integer("layer", layer)
        if not 0 <= number < self.n_layers:
            raise InvalidArgument(f"layer {number} out of range [0, {self.n_layers})")
        return self._owners[number] if self._owners else (cast("Cache", self), number)


def _cache_class() -> Any:
    from .cache import Cache

    return Cache


def _shape_of_all(shapes: List[Shape], n_layers: int) -> Shape:
    """What a wrapper of caches of these shapes shows."""
    attention = [shape for shape in shapes if shape.n_kv_heads]
    common: Dict[str, Any] = {}
    for name in _OF_ATTENTION:
        values = {getattr(shape, name) for shape in attention}
        common[name] = values.pop() if len(values) == 1 else 0
    return Shape(
        kind="wrapper",
        n_layers=n_layers,
        **common,
        max_sequences=min(shape.max_sequences for shape in shapes),
        max_batch=min(shape.max_batch for shape in shapes),
        capacity=0,
        dtype_conv=0,
        dtype_state=0,
        conv_shape=(),
        state_shape=(),
    )


def _places(
    children: Sequence[Cache], layers: Optional[Iterable[Tuple[Union[int, Cache], int]]]
) -> List[Tuple[int, int]]:
    """For each layer the index of its child and its number there."""
    if layers is None:
        return [(i, layer) for i, child in enumerate(children) for layer in range(child.n_layers)]
    places = []
    for index, place in enumerate(layers):
        if not isinstance(place, (tuple, list)) or len(place) != 2:
            raise TypeError(f"layers[{index}] must be a child and a layer of it, not {place!r}")
        child, layer = place
        if isinstance(child, CacheHandle):
            found = [i for i, each in enumerate(children) if each is child]
            if not found:
                raise InvalidArgument(f"layers[{index}] names a cache that is none of children")
            child = found[0]
        places.append(
            (integer(f"layers[{index}][0]", child), integer(f"layers[{index}][1]", layer))
        )
    return places
