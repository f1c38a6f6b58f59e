"""`PhaseRun`: one engine with its context, and the memory of everything but the caches.

Memory is allocated once, for the greatest shapes of the profile, so that addresses never change and
a step of the same shapes can be recorded once and replayed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mla_opt.engines.manifest import Cache, PhaseEngine, Tensor
from mla_opt.runtimes.tensorrt.cuda import Cuda
from mla_opt.verification.running import RunError

Array = npt.NDArray[Any]
Shapes = tuple[tuple[int, ...], ...]


class PhaseRun:
    """Runs one engine on caches that lie on the device."""

    def __init__(
        self, cuda: Cuda, engine: Any, phase: PhaseEngine, caches: Sequence[Cache], logits: str
    ) -> None:
        self._cuda, self._caches = cuda, tuple(caches)
        self._context = engine.create_execution_context()
        if self._context is None:
            raise RunError(f"TensorRT makes no context for {phase.phase}: out of memory?")
        kept = {each.input for each in caches}
        self._inputs = {each.name: each for each in phase.inputs if each.name not in kept}
        self._logits = next(each for each in phase.outputs if each.name == logits)
        self._addresses = {name: self._allocate(each) for name, each in self._inputs.items()}
        self._addresses[logits] = cuda.allocate(self._most_logits(phase))
        for name, address in self._addresses.items():
            self._context.set_tensor_address(name, address)
        self._recorded: dict[Shapes, Any] = {}
        self._seen: set[Shapes] = set()

    def _allocate(self, tensor: Tensor) -> int:
        size = math.prod(tensor.profile[-1]) * dtype_of(tensor.dtype).itemsize
        return self._cuda.allocate(size)

    def _most_logits(self, phase: PhaseEngine) -> int:
        """Bytes of the logits of the greatest call."""
        for each in phase.inputs:
            self._set_shape(each.name, each.profile[-1])
        shape = tuple(self._context.get_tensor_shape(self._logits.name))
        return int(math.prod(shape) * dtype_of(self._logits.dtype).itemsize)

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Use the caches at these addresses, by the names of their inputs, from now on."""
        for cache in self._caches:
            for name in (cache.input, cache.output):
                self._context.set_tensor_address(name, addresses[cache.input])
        self._recorded.clear()
        self._seen.clear()

    def close(self) -> None:
        """Give the memory and the context back."""
        for address in self._addresses.values():
            self._cuda.free(address)
        self._addresses.clear()
        self._recorded.clear()
        self._context = None

    def run(self, feeds: Mapping[str, Array], batch: int, *, record: bool = False) -> Array:
        """Run one call and return its logits.

        ``record`` lets a call of shapes that were seen before be recorded, and then replayed.

        Raises:
            RunError: TensorRT or CUDA failed.
        """
        arrays = {name: np.ascontiguousarray(feed) for name, feed in feeds.items()}
        for name, array in arrays.items():
            self._set_shape(name, array.shape)
            self._cuda.copy_in(self._addresses[name], array)
        for cache in self._caches:
            self._set_shape(cache.input, (batch, 1, cache.rows, cache.width))
        self._start(tuple(array.shape for array in arrays.values()), record)
        shape = tuple(self._context.get_tensor_shape(self._logits.name))
        logits: Array = np.empty(shape, dtype_of(self._logits.dtype))
        self._cuda.copy_out(logits, self._addresses[self._logits.name])
        self._cuda.wait()
        return logits

    def _start(self, shapes: Shapes, record: bool) -> None:
        if not record or shapes not in self._seen:
            self._seen.add(shapes)  # the first call loads kernels, which cannot be recorded
            self._execute()
            return
        if shapes not in self._recorded:
            self._recorded[shapes] = self._cuda.record(self._execute)
        self._cuda.replay(self._recorded[shapes])

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream):
            raise RunError("TensorRT does not run the engine; its log says why")

    def _set_shape(self, name: str, shape: Sequence[int]) -> None:
        if not self._context.set_input_shape(name, tuple(shape)):
            raise RunError(f"the engine takes no {name} of shape {tuple(shape)}")


def dtype_of(name: str) -> np.dtype[Any]:
    """NumPy's type by the name that the manifest has."""
    by_name = {str(each.numpy().name): each for each in ir.DataType if _has_numpy(each)}
    return np.dtype(by_name[name].numpy())


def _has_numpy(kind: ir.DataType) -> bool:
    try:
        kind.numpy()
    except TypeError:
        return False
    return True
