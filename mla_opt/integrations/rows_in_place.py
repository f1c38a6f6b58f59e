"""Static caches under the interface of a cache that grows: keys and values in, keys and values out.

A component that `optimize` gave ``cache="static:ROWS"`` has one buffer ``[B, 1, ROWS, C+R]`` for
each layer, and writes new rows behind those that are valid. transformers hands over ``c_kv`` and
``k_pe`` of a layer as its keys and values. Here the buffers are bound as inputs and as outputs, and
what is handed out are views of their valid rows. Views that come back are known by where they lie,
so that no row is copied; rows of anybody else are copied in, such as those of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import onnxruntime
import torch

from mla_opt.errors import InputError

LATENT, KEYS, VALUES = ".latent", ".keys", ".values"
PAST_LEN = "past_len"


class RowsInPlace:
    """The buffers of one session, and calls on them."""

    def __init__(self, session: onnxruntime.InferenceSession, capacity: int) -> None:
        self._session = session
        self._capacity = capacity
        self._inputs = {each.name: each for each in session.get_inputs()}
        self._caches = [name for name in self._inputs if name.endswith(LATENT)]
        self._buffers: dict[str, torch.Tensor] = {}

    @classmethod
    def of(cls, session: onnxruntime.InferenceSession) -> RowsInPlace | None:
        """What a session with static caches needs; ``None`` for any other."""
        shapes = {each.name: each.shape for each in session.get_inputs()}
        rows = [shape[2] for name, shape in shapes.items() if name.endswith(LATENT)]
        if PAST_LEN not in shapes or not rows:
            return None
        return cls(session, rows[0])

    def run(self, leaves: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """Run one call on the tensors of its arguments; returns the outputs, views among them.

        Raises:
            ValueError: an input is missing.
            InputError: past and new rows are more than the buffers hold.
        """
        widths, past = self._take(leaves)
        plain = self._plain(leaves)
        batch, new = plain["input_ids"].shape[:2] if "input_ids" in plain else _rows_of(plain)
        if past + new > self._capacity:
            raise InputError(
                f"{past} past rows and {new} new ones are more than the {self._capacity} of the"
                " static cache; export with a larger cache static:ROWS"
            )
        binding = self._bound({**plain, PAST_LEN: torch.full((batch,), past, dtype=torch.int32)})
        self._session.run_with_iobinding(binding)
        return self._handed_out(binding, widths, past + new)

    def _take(self, leaves: Mapping[str, torch.Tensor]) -> tuple[list[int], int]:
        """Bring past rows into the buffers; returns C of each layer, and how many there are."""
        pairs = [_pair(leaves, name) for name in self._caches]
        past = int(pairs[0][0].shape[2])
        if past > self._capacity:
            raise InputError(f"{past} past rows are more than the {self._capacity} of the cache")
        for name, (keys, values) in zip(self._caches, pairs, strict=True):
            buffer, width = self._buffers.get(name), keys.shape[3]
            if buffer is not None and _lies_in(keys, buffer, 0) and _lies_in(values, buffer, width):
                continue
            buffer = self._fresh(name, keys.shape[0], width + values.shape[3])
            buffer[:, :, :past, :width] = keys
            buffer[:, :, :past, width:] = values
        return [keys.shape[3] for keys, _ in pairs], past

    def _fresh(self, name: str, batch: int, width: int) -> torch.Tensor:
        """A buffer that nobody else looks at, so that what was handed out before stays as it is."""
        kind = ir.DataType[self._inputs[name].type.removeprefix("tensor(").rstrip(")").upper()]
        made = torch.zeros(batch, 1, self._capacity, width, dtype=_TYPES[kind])
        self._buffers[name] = made
        return made

    def _plain(self, leaves: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of all inputs that are no cache."""
        wanted = [name for name in self._inputs if name not in (*self._caches, PAST_LEN)]
        missing = [name for name in wanted if name not in leaves]
        if missing:
            raise ValueError(f"The graph takes {missing}, which {list(leaves)} don't hold.")
        return {name: leaves[name].cpu().contiguous() for name in wanted}

    def _bound(self, plain: Mapping[str, torch.Tensor]) -> onnxruntime.IOBinding:
        binding = self._session.io_binding()
        for name, tensor in plain.items():
            # ONNX Runtime keeps the array for as long as it is bound.
            binding.bind_cpu_input(name, tensor.numpy())
        caches = iter(self._caches)
        for name, buffer in self._buffers.items():
            _bind(binding.bind_input, name, buffer)
        for each in self._session.get_outputs():
            if each.name.endswith(LATENT):
                _bind(binding.bind_output, each.name, self._buffers[next(caches)])
            else:
                binding.bind_output(each.name)
        return binding

    def _handed_out(
        self, binding: onnxruntime.IOBinding, widths: list[int], total: int
    ) -> list[torch.Tensor]:
        outputs: list[torch.Tensor] = []
        caches = iter(zip(self._caches, widths, strict=True))
        for each, value in zip(self._session.get_outputs(), binding.get_outputs(), strict=True):
            if each.name.endswith(LATENT):
                name, width = next(caches)
                rows = self._buffers[name][:, :, :total]
                outputs += [rows[..., :width], rows[..., width:]]
            else:
                outputs.append(torch.from_numpy(value.numpy()))
        return outputs


_TYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}


def _pair(leaves: Mapping[str, torch.Tensor], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys and the values that lie in a buffer.

    Raises:
        ValueError: they were not given.
    """
    stem = name.removeprefix("input.").removesuffix(LATENT)
    missing = [stem + half for half in (KEYS, VALUES) if stem + half not in leaves]
    if missing:
        raise ValueError(f"The graph takes {missing}, which {list(leaves)} don't hold.")
    return leaves[stem + KEYS], leaves[stem + VALUES]


def _lies_in(rows: torch.Tensor, buffer: torch.Tensor, column: int) -> bool:
    """Whether rows are the first ones of a buffer, from a column on."""
    return (
        rows.data_ptr() == buffer.data_ptr() + column * buffer.element_size()
        and rows.stride() == buffer.stride()
        and rows.dtype == buffer.dtype
        and rows.shape[0] == buffer.shape[0]
    )


def _bind(bind: Any, name: str, buffer: torch.Tensor) -> None:
    kind = int(ir.tensor_adapters.from_torch_dtype(buffer.dtype))
    bind(name, "cpu", 0, kind, list(buffer.shape), buffer.data_ptr())


def _rows_of(plain: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    """Sequences and new tokens of a component that takes embeddings in the place of tokens.

    Raises:
        ValueError: neither was given.
    """
    if "inputs_embeds" not in plain:
        raise ValueError(f"neither input_ids nor inputs_embeds is among {list(plain)}")
    batch, new = plain["inputs_embeds"].shape[:2]
    return int(batch), int(new)
