"""A causal LM over flat tensors: what the exported graph looks like from outside.

    input_ids [B,S]  attention_mask [B,P+S]  position_ids [B,S]  past.{i}.{part} [...,P,D]
    -> logits [B,S,vocab]  present.{i}.{part} [...,P+S,D]

`part` is `keys`, `values`, and in sparse-attention families `indexer_keys`. Each grows along its
axis -2.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

#: Tensors a cache layer may hold, in the order of the graph's inputs.
PARTS = ("keys", "values", "indexer_keys")
TOKENS = ("input_ids", "attention_mask", "position_ids")


@dataclasses.dataclass(frozen=True)
class CacheTensor:
    """One tensor of the cache; the batch and length of its shape are only an example."""

    layer: int
    part: str
    shape: tuple[int, ...]

    def name(self, prefix: str) -> str:
        """The graph's name for it, `past` or `present`."""
        return f"{prefix}.{self.layer}.{self.part}"

    def sized(self, batch: int, length: int) -> tuple[int, ...]:
        """The shape for a batch and a number of tokens."""
        return (batch, *self.shape[1:-2], length, self.shape[-1])


class FlatCausalLM(torch.nn.Module):
    """Wraps a causal LM so that its cache goes in and comes out as plain tensors."""

    def __init__(self, model: Any, cache: bool) -> None:
        super().__init__()
        self.model = model
        self.layout = cache_layout(model) if cache else ()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Logits, then the grown cache tensors in the order of the past ones."""
        cache = fill_cache(self.model.config, self.layout, past) if self.layout else None
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=bool(self.layout),
        )
        return (outputs.logits, *read_cache(outputs.past_key_values, self.layout))

    @property
    def input_names(self) -> list[str]:
        """Names of the graph's inputs."""
        return [*TOKENS, *(tensor.name("past") for tensor in self.layout)]

    @property
    def output_names(self) -> list[str]:
        """Names of the graph's outputs."""
        return ["logits", *(tensor.name("present") for tensor in self.layout)]


def cache_layout(model: Any) -> tuple[CacheTensor, ...]:
    """The cache's tensors, found by running one step."""
    with torch.no_grad():
        outputs = model(input_ids=torch.zeros((1, 3), dtype=torch.long), use_cache=True)
    return tuple(
        CacheTensor(index, part, tuple(getattr(layer, part).shape))
        for index, layer in enumerate(outputs.past_key_values.layers)
        for part in PARTS
        if isinstance(getattr(layer, part, None), torch.Tensor)
    )


def fill_cache(config: Any, layout: tuple[CacheTensor, ...], past: tuple[torch.Tensor, ...]) -> Any:
    """A `DynamicCache` that holds the past tensors themselves, not a concatenation with them."""
    from transformers import DynamicCache

    cache = DynamicCache(config=config)
    for entry, tensor in zip(layout, past, strict=True):
        layer = cache.layers[entry.layer]
        setattr(layer, entry.part, tensor)
        prefix = "indexer_" if entry.part == "indexer_keys" else ""
        setattr(layer, f"{prefix}dtype", tensor.dtype)
        setattr(layer, f"{prefix}device", tensor.device)
        setattr(layer, f"is_{prefix}initialized", True)
    return cache


def read_cache(cache: Any, layout: tuple[CacheTensor, ...]) -> tuple[torch.Tensor, ...]:
    """The cache's tensors, in layout order."""
    return tuple(getattr(cache.layers[entry.layer], entry.part) for entry in layout)


def run_flat(model: FlatCausalLM, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run the wrapped model on named arrays; the outputs are named as the graph names them."""
    inputs = [torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in model.input_names]
    with torch.no_grad():
        outputs = model(*inputs)
    return {name: tensor.numpy() for name, tensor in zip(model.output_names, outputs, strict=True)}
