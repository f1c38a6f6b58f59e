"""Hugging Face's own model in PyTorch, in a process of its own.

    python -m mla_opt.benchmarking.peers.torch_worker ATTENTION DIR THREADS FOLDER

ATTENTION is what transformers calls its implementation: eager or sdpa.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from mla_opt.benchmarking.memory import die_first
from mla_opt.benchmarking.peers.stepping import TOKEN, Ids, SteppingWorker
from mla_opt.benchmarking.serving import serve

Feeds = dict[str, torch.Tensor]
Layer = tuple[torch.Tensor, torch.Tensor]


class TorchWorker(SteppingWorker):
    """The model and its `DynamicCache`."""

    def __init__(self, attention: str, folder: str, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        loader: Any = AutoModelForCausalLM
        self.model = loader.from_pretrained(
            folder, attn_implementation=attention, dtype=torch.float32
        ).eval()
        self.cache: Any = None
        self.layers: list[Layer] = []
        super().__init__()

    def fill(self) -> None:
        """Random rows, as wide as what the model caches of one token."""
        self.cache = None
        first: Any = DynamicCache()
        self._forward(_feeds(torch.full((self.point.batch, 1), TOKEN), 0), first)
        layers = [
            (_rows(x.keys, self.point.context), _rows(x.values, self.point.context))
            for x in first.layers
        ]
        self.cache = DynamicCache(layers if self.point.context else [])
        # What is repeated on the same past needs that again; else it would only take memory.
        self.layers = [] if self.point.fed_back or not self.point.context else layers

    def restore(self) -> None:
        """A cache of the same tensors: growing makes new ones."""
        self.cache = DynamicCache(self.layers)

    def prepare(self, start: int) -> Feeds:
        """Ids, mask and positions."""
        return _feeds(torch.full((self.point.batch, self.point.query), TOKEN), start)

    def run(self, prepared: Feeds) -> None:
        """One forward pass; logits of the last position only."""
        self._forward(prepared, self.cache)

    def logits(self, ids: Ids) -> npt.NDArray[Any]:
        """Logits of the last position."""
        given = torch.tensor([list(row) for row in ids])
        logits: npt.NDArray[Any] = self._forward(_feeds(given, 0), DynamicCache())[:, -1].numpy()
        return logits

    def _forward(self, feeds: Feeds, cache: Any) -> torch.Tensor:
        with torch.inference_mode():
            output = self.model(**feeds, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: torch.Tensor = output.logits
        return logits


def _rows(example: torch.Tensor, rows: int) -> torch.Tensor:
    """Unit normal, ``[B, heads, rows, width]`` with the other sizes of ``example``."""
    return torch.randn(*example.shape[:-2], rows, example.shape[-1])


def _feeds(ids: torch.Tensor, start: int) -> Feeds:
    batch, new = ids.shape
    return {
        "input_ids": ids,
        "attention_mask": torch.ones(batch, start + new, dtype=torch.long),
        "position_ids": torch.arange(start, start + new).expand(batch, new),
    }


def main(attention: str, folder: str, threads: str) -> None:
    """Serve requests until standard input ends."""
    die_first()
    serve(lambda: TorchWorker(attention, folder, int(threads)))


if __name__ == "__main__":
    main(*sys.argv[1:4])
