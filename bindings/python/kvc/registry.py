"""The operators of a device by name, and operators that are written in Python."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, Optional, TypeVar, Union

from . import kvc_capi as _capi
from ._arrays import STORED, dtype_code
from ._handles import checks_names, set_integers
from ._sets import FEATURES, MODES, PRECISIONS, SET, Feature, Mode, bits_of, types_of
from .device import Device, device_of
from .errors import NotFound
from .operator_calls import Implementation
from .operator_settings import OperatorInfo, info_of, text_of

if TYPE_CHECKING:
    from ._arrays import Dtype

    Target = TypeVar("Target")


class Operators:
    """The operators of a device by name, in order of registration; an alias follows its operator.

    flash      flash_attn2, sdpa, splash, blockwise, paged_attention: softmax on the fly over tiles, with
               every option but dropout. What attends where no operator is bound
    vanilla    the definition, row by row: every option, dropout and a softmax in f64 included. For
               comparisons, not for speed
    decode     autoregressive_decodeattn: flash for passes in which each sequence has one token
    ring       flash over `stretches` of the keys, each attended by itself and merged in their order
    lightning  what lightning caches do; no other cache takes it, and they take no other

    Nothing is ever ignored: what a layer or a call needs and its operator lacks raises NotSupported, which
    names it.
    """

    def __init__(self, device: Device) -> None:
        self.device = device

    def __iter__(self) -> Iterator[OperatorInfo]:
        for i in itertools.count():
            info = _capi.kvc_operator_info()
            try:
                _capi.kvc_operator_at(self._handle(), i, info)
            except NotFound:
                return
            yield info_of(info)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def find(self, name: str) -> OperatorInfo:
        """What the operator has that a name stands for. Raises NotFound (the message lists the names)."""
        info = _capi.kvc_operator_info()
        _capi.kvc_operator_find(self._handle(), text_of("name", name), info)
        return info_of(info)

    @checks_names
    def supports(
        self,
        name: Optional[str] = None,
        *,
        mode: Mode = "prefill",
        features: Iterable[Feature] = (),
        dtype_k: Dtype = "f32",
        dtype_v: Dtype = None,
        n_q_heads: int = 0,
        n_kv_heads: int = 0,
        head_dim: int = 0,
        head_dim_v: int = 0,
        runtime_dtype: Dtype = "f32",
        softmax_dtype: Dtype = "f32",
    ) -> str:
        """Finds the operator that can do what is needed: that of a name, or without a name the first
        built-in one that can.

        mode, features    as OperatorInfo lists them; "grouped" and "dims_differ" follow from the numbers
        dtype_k, dtype_v  storage types of K and V; dtype_v None: as dtype_k
        n_q_heads … head_dim_v   0: any

        Returns the name of the operator. Raises NotSupported (names the first thing that it lacks),
        NotFound, InvalidArgument, DtypeError.
        """
        needs = _capi.kvc_operator_needs()
        set_integers(
            needs,
            mode=bits_of("mode", mode, MODES),
            features=bits_of("features", features, FEATURES),
            dtype_k=dtype_code(dtype_k, "dtype_k", STORED),
            dtype_v=dtype_code(dtype_k if dtype_v is None else dtype_v, "dtype_v", STORED),
            n_q_heads=n_q_heads,
            n_kv_heads=n_kv_heads,
            head_dim_k=head_dim,
            head_dim_v=head_dim_v,
            runtime_dtype=dtype_code(runtime_dtype, "runtime_dtype", PRECISIONS),
            softmax_dtype=dtype_code(softmax_dtype, "softmax_dtype", PRECISIONS),
        )
        wanted = None if name is None else text_of("name", name)
        return _capi.kvc_operator_supports(self._handle(), wanted, needs)

    def register(
        self,
        *names: str,
        replace: bool = False,
        modes: Union[Mode, Iterable[Mode]] = ("train", "prefill", "autoregressive"),
        features: Iterable[Feature] = (),
        storage: Any = "f32",
        runtime_dtypes: Any = "f32",
        softmax_dtypes: Any = "f32",
        head_dim_min: int = 0,
        head_dim_max: int = 0,
        head_dim_multiple: int = 0,
        block_q_multiple: int = 0,
        block_k_multiple: int = 0,
    ) -> Callable[[Target], Target]:
        """Adds an operator that is written in Python, as a decorator:

            @kvc.operators().register("mine", features=["lse"])
            class Mine:
                def forward(self, call):                 # kvc.OperatorCall
                    ...                                  # reads np.asarray(call.q), writes np.asarray(call.out)

        It takes a class (made without arguments), an object with forward(call), or a function that is
        forward(call). An object may also have supports(needs), which is asked besides what is said here,
        with a kvc.OperatorNeeds, and returns whether it can. Returns what it was given.

        names    "mine", an alias …: 1 to 31 of a-z, 0-9, _ and - each
        replace  names that are taken are given to the new operator
        others   what the operator has, as in OperatorInfo. It runs on the CPU. Keys that owe a rotation are
                 rotated first, as get() does it, unless it has "shifted"

        forward() runs on the thread that called attention(), with the GIL, and returns None. An exception
        that leaves it is raised by that call, which has changed nothing but, perhaps, the arrays that it
        writes (what put_attention() has put stays put). Calls on the cache raise Busy meanwhile. Layers
        and operators that exist keep what they have, whatever happens to the name. The object lives as
        long as any of them.

        Raises InvalidArgument (a name that is taken), OutOfMemory.
        """
        info = _capi.kvc_operator_info()
        set_integers(
            info,
            devices=0,
            modes=bits_of("modes", modes, MODES),
            features=bits_of("features", features, FEATURES),
            storage=types_of("storage", storage, SET[1:]),
            runtime_dtypes=types_of("runtime_dtypes", runtime_dtypes, PRECISIONS),
            softmax_dtypes=types_of("softmax_dtypes", softmax_dtypes, PRECISIONS),
            head_dim_min=head_dim_min,
            head_dim_max=head_dim_max,
            head_dim_multiple=head_dim_multiple,
            block_q_multiple=block_q_multiple,
            block_k_multiple=block_k_multiple,
        )
        listed = ",".join(text_of("names", name) for name in names)
        flags = _capi.KVC_OPERATOR_REPLACE if replace else 0

        def decorate(target: Target) -> Target:
            made = Implementation(target)
            _capi.kvc_operator_register(self._handle(), listed, flags, info, made, made.asks)
            return target

        return decorate

    def unregister(self, name: str) -> None:
        """Takes an operator of register() away, with all of its names. Those that it had taken from a
        built-in operator name that one again.

        Raises NotFound, NotSupported (it is built in).
        """
        _capi.kvc_operator_unregister(self._handle(), text_of("name", name))

    def _handle(self) -> Any:
        return device_of(self.device)._handle

    def __repr__(self) -> str:
        return f"<kvc.Operators {', '.join(info.name for info in self)}>"


def operators(device: Optional[Device] = None) -> Operators:
    """The operators of a device. None: the default CPU device."""
    return Operators(device_of(device))
