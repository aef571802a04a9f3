"""AttentionImpl: what every attention operator is, kvc's own and those of callers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Optional, Sequence, Tuple, Union

import numpy as np

from .. import mode_of, repeat_kv_heads
from .._arrays import kind_of
from ..device import default_device
from .attention_metadata import AttentionMetadata
from .outputs import AttentionOutput
from .partition import PartitionSpec, kept_axes

if TYPE_CHECKING:
    from typing import Literal

    from .._arrays import Array


class AttentionImpl(ABC):
    """An attention operator with settings. Calling it runs the forward_… of its backend:

    backend of the metadata  runs          which in this class runs
    "cpu"                    forward_cpu   forward_native
    "gpu" or "cuda"          forward_gpu   forward_cuda, and that forward_native
    "tpu"                    forward_tpu   forward_native
    None                     as the device of kvc, "cpu" or "gpu"

    Derive from it to make an operator in Python, and register it with AttentionRegistry.register. Its
    forward_… take the arguments of VanillaAttn or fewer: an argument that a function does not have
    raises TypeError, and is never ignored.
    """

    def __init__(self, metadata: AttentionMetadata) -> None:
        self.metadata = metadata

    @classmethod
    @abstractmethod
    def get_impl_name(cls) -> Union[str, Tuple[str, ...]]:
        """The name of the operator, or a tuple of names."""

    @abstractmethod
    def get_impl_metadata(self) -> AttentionMetadata:
        """The metadata that the operator was made with."""

    @abstractmethod
    def forward_native(self, *args: Any, **kwargs: Any) -> AttentionOutput:
        """Attends, on any backend."""

    def forward_cpu(self, *args: Any, **kwargs: Any) -> AttentionOutput:
        """Attends on a CPU."""
        return self.forward_native(*args, **kwargs)

    def forward_gpu(self, *args: Any, **kwargs: Any) -> AttentionOutput:
        """Attends on a GPU."""
        return self.forward_cuda(*args, **kwargs)

    def forward_cuda(self, *args: Any, **kwargs: Any) -> AttentionOutput:
        """Attends on a GPU of NVIDIA's."""
        return self.forward_native(*args, **kwargs)

    def forward_rocm(self, *args: Any, **kwargs: Any) -> AttentionOutput:
        """Attends on a GPU of AMD's. Called by name alone."""
        return self.forward_gpu(*args, **kwargs)

    def forward_tpu(self, *args: Any, **kwargs: Any) -> AttentionOutput:
        """Attends on a TPU."""
        return self.forward_native(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> AttentionOutput:
        """Runs the forward_… of the backend. Raises RuntimeError (the backend is none of these)."""
        backend = self.metadata.backend_name or self.current_backend()
        if backend not in ("cpu", "gpu", "tpu"):
            raise RuntimeError(f'backend {backend!r} is none of "cpu", "gpu", "cuda" and "tpu"')
        forward = getattr(self, f"forward_{backend}")
        result: AttentionOutput = forward(*args, **kwargs)
        return result

    def current_backend(self) -> Literal["tpu", "gpu", "cpu"]:
        """Where kvc computes where nothing else is said: "cpu", or "gpu"."""
        return "cpu" if default_device().name == "cpu" else "gpu"

    def get_mode(
        self, q: Array, BTHD: bool = True
    ) -> Literal["__autoregressive__", "__prefill__", "__train__", "__insert__"]:
        """"__autoregressive__" if q has one token per row, else "__train__".

        q     four dimensions
        BTHD  True: [batch, length, heads, dim]; False: [batch, heads, length, dim]

        Raises kvc.ShapeError.
        """
        return f"__{mode_of(q, bthd=BTHD)}__"  # type: ignore[return-value]

    @staticmethod
    def repeat_kv_heads(k: Array, v: Array, num_reps: int) -> Tuple[Any, Any]:
        """Writes each KV head num_reps times: head h * num_reps + i is head h.

        k, v  [batch, length, n_kv_heads, dim]

        Returns (k, v) with n_kv_heads * num_reps heads. The operators of kvc never need it.
        """
        k_repeated, v_repeated = (
            _like(each, repeat_kv_heads(each, num_reps)) for each in (k, v)
        )
        return k_repeated, v_repeated

    def create_stable_sharding(
        self,
        state_ps: Optional[PartitionSpec] = None,
        preserved_indices: Optional[Sequence[int]] = None,
        clone_ps: Optional[PartitionSpec] = None,
        dep: Any = True,
        tensor: Any = None,
    ) -> Optional[PartitionSpec]:
        """A PartitionSpec of which some dimensions are kept.

        state_ps           the axes of an array
        preserved_indices  dimensions that keep their axes; the others become None. None: all keep them
        clone_ps           the kept axes are taken from it instead
        dep                None: there is nothing to shard
        tensor             an array: axes that metadata.mesh lacks, or whose devices do not divide its
                           extent, become None

        Returns None if state_ps or dep is None.
        """
        if state_ps is None or dep is None:
            return None
        axes = list(state_ps)
        if preserved_indices is not None:
            kept = {index % len(axes) for index in preserved_indices}
            source = state_ps if clone_ps is None else clone_ps
            axes = [source[i] if i in kept else None for i in range(len(axes))]
        if tensor is not None:
            mesh = self.metadata.mesh
            axes = [kept_axes(*each, mesh) for each in zip(axes, np.shape(tensor))]
        return PartitionSpec(*axes)


def _like(array: Any, result: Any) -> Any:
    """A new array of NumPy as one of the library that another array is of, of the same type."""
    if isinstance(array, np.ndarray) or result.dtype.kind != "V":
        return kind_of(array, result)
    bits = kind_of(array, result.view(np.uint16))  # NumPy lends no bfloat16
    return bits.view(array.dtype) if hasattr(bits, "view") else result
