"""`Binding`: one call of a model with all its states bound in place."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from mla_opt.graphs.interface.feeds import numpy_dtype
from mla_opt.graphs.interface.interface import State
from mla_opt.ort_values import to_ort_value
from mla_opt.runtimes.onnxruntime.decoder import Decoder
from mla_opt.verification.onnx.sessions import ORT_ERRORS
from mla_opt.verification.running import RunError

Array = npt.NDArray[Any]

#: Gives back after a chunk what no decode step needs.
SHRINK = ("memory.enable_memory_arena_shrinkage", "cpu:0")


class BoundState(Protocol):
    """The memory of one state in a call."""

    @property
    def state(self) -> State:
        """The input and the output that it is bound to."""

    @property
    def batch(self) -> int:
        """Number of sequences."""

    def past(self, length: int) -> ort.OrtValue:
        """The tensor that a call with ``length`` rows of past is fed."""

    def present(self, length: int) -> ort.OrtValue:
        """The tensor that a call fills, with ``length`` rows when it is done."""

    def advance(self) -> None:
        """Let the present be the next past."""


class Binding:
    """Runs a decoder on its state buffers."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._binding = decoder.session.io_binding()
        # Outputs keep the order in which they were bound first: the logits are the first.
        self._binding.bind_output(decoder.logits.name, "cpu")
        self._shrinking = ort.RunOptions()
        self._shrinking.add_run_config_entry(*SHRINK)
        self._prepared: tuple[ort.OrtValue, Array] | None = None

    def run(
        self, feeds: dict[str, Array], states: Sequence[BoundState], past: int, new: int
    ) -> Array:
        """Run one call of ``new`` tokens and let the states advance.

        Returns the logits of the last token, ``[B, V]``, in memory that the next call may reuse.

        Raises:
            RunError: ONNX Runtime refuses; growing states are then as they were before.
        """
        # Values share the memory of the arrays, so both live until the call is done.
        for name, feed in feeds.items():
            self._binding.bind_ortvalue_input(name, to_ort_value(feed))
        for state in states:
            self._binding.bind_ortvalue_input(state.state.input.name, state.past(past))
            self._binding.bind_ortvalue_output(state.state.output.name, state.present(past + new))
        batch = states[0].batch
        logits = self._logits(batch, new)
        for state in states:
            state.advance()
        return logits

    def _logits(self, batch: int, new: int) -> Array:
        """Run, into memory kept for the logits of one token if their shape is known."""
        name = self._decoder.logits.name
        if new == 1 and self._prepared is not None and self._prepared[1].shape[0] == batch:
            value, array = self._prepared
            self._binding.bind_ortvalue_output(name, value)
            self._run(None)
            return last_token(array, batch)
        self._binding.bind_output(name, "cpu")
        self._run(None if new == 1 else self._shrinking)
        value = self._binding.get_outputs()[0]
        array = view(value, numpy_dtype(self._decoder.logits))
        logits = last_token(array, batch).copy()
        if new == 1:
            kept = np.empty(array.shape, array.dtype)
            self._prepared = to_ort_value(kept), kept
        return logits

    def _run(self, options: ort.RunOptions | None) -> None:
        try:
            self._decoder.session.run_with_iobinding(self._binding, options)
        except ORT_ERRORS as error:
            reason = " ".join(str(error).split())[:400]
            raise RunError(
                f"{self._decoder.label}: ONNX Runtime does not run it: {reason}"
            ) from error


def view(value: ort.OrtValue, dtype: np.dtype[Any]) -> Array:
    """Return a tensor on the CPU without copying it; good for as long as ``value`` is."""
    shape = value.shape()
    size = dtype.itemsize * math.prod(shape)
    memory = (ctypes.c_char * size).from_address(value.data_ptr())
    return np.frombuffer(memory, dtype).reshape(shape)


def last_token(logits: Array, batch: int) -> Array:
    """Return ``[B, V]`` of logits ``[B, S, V]``, ``[B, 1, V]``, ``[B, V]`` or ``[S, V]``."""
    if logits.ndim == 3:
        return logits[:, -1]
    return logits if logits.shape[0] == batch else logits[-1:]
