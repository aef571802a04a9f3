"""Attention operators by name."""

from __future__ import annotations

import functools
import warnings
from typing import ClassVar, Dict, List, Tuple, Type, TypeVar

from .. import operators
from ..errors import NotFound
from .attention import AttentionImpl
from .attention_metadata import AttentionMetadata
from .kvc_attention import KvcAttention

Impl = TypeVar("Impl", bound=Type[AttentionImpl])


class AttentionRegistry:
    """Attention operators by name: classes that were registered here, kvc's own among them, and beside
    them the operators of kvc.operators() of the CPU device that have no class here.

        @ed.AttentionRegistry.register
        class MyAttention(ed.AttentionImpl): ...

        attention = ed.AttentionRegistry.create("flash_attn2", ed.AttentionMetadata())
        output = attention(q=q, k=k, v=v, causal=True)

    "vanilla"                          VanillaAttn, the definition
    "flash", "flash_attn2", "sdpa", "splash", "blockwise", "paged_attention"
                                       FlashAttn
    "decode", "autoregressive_decodeattn"
                                       AutoRegressiveDecodeAttn
    "ring"                             RingAttn
    "lightning"                        LightningAttn
    "auto"                             AutoAttn, which is what kvc chooses for each call
    """

    _classes: ClassVar[Dict[str, Type[AttentionImpl]]] = {}

    @classmethod
    def register(cls, impl_cls: Impl) -> Impl:
        """Registers a class under its get_impl_name(). A name that is taken is given to the new class,
        with a warning. Returns the class."""
        for name in names_of(impl_cls):
            if cls._classes.get(name, impl_cls) is not impl_cls:
                warnings.warn(
                    f"{impl_cls.__name__} takes the name {name!r} of {cls._classes[name].__name__}",
                    stacklevel=2,
                )
            cls._classes[name] = impl_cls
        return impl_cls

    @classmethod
    def get(cls, impl_name: str) -> Type[AttentionImpl]:
        """The class of a name. Raises kvc.NotFound (a ValueError), which lists all names."""
        if impl_name in cls._classes:
            return cls._classes[impl_name]
        if impl_name not in cls.list_implementations():
            names = ", ".join(cls.list_implementations())
            raise NotFound(f"there is no attention operator {impl_name!r}: there are {names}")
        return _class_of(impl_name)

    @classmethod
    def create(cls, impl_name: str, metadata: AttentionMetadata) -> AttentionImpl:
        """An operator with settings. Raises kvc.NotFound (a ValueError), which lists all names."""
        return cls.get(impl_name)(metadata)

    @classmethod
    def list_implementations(cls) -> List[str]:
        """All names, aliases included, in order of registration: classes first, then the operators of
        kvc that have none."""
        return list(dict.fromkeys([*cls._classes, *(each.name for each in operators())]))


def names_of(impl_cls: Type[AttentionImpl]) -> Tuple[str, ...]:
    """The names of a class."""
    names = impl_cls.get_impl_name()
    return (names,) if isinstance(names, str) else tuple(names)


@functools.lru_cache(maxsize=None)
def _class_of(name: str) -> Type[AttentionImpl]:
    """A class for an operator that was registered with kvc.operators()."""
    return type(KvcAttention.__name__, (KvcAttention,), {"names": (name,), "__module__": __name__})
