"""Programs whose masks are true where nothing may be looked at, as PyTorch's modules have it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import mla_opt  # noqa: E402
from mla_opt.graphs.torch.graph import TorchGraph  # noqa: E402
from mla_opt.programs.frontends import open_program  # noqa: E402

NEVER = float("-inf")
NAMES = ["input_ids", "attn_mask", "key_padding_mask", "past_c_kv", "past_k_pe"]

Hide = Callable[[Any, Any, Any], Any]
"""Hides scores ``[B, H, S, T]`` by masks ``[S, T]`` and ``[B, T]``."""


def filled(scores: Any, causal: Any, padding: Any) -> Any:
    return scores.masked_fill(causal, NEVER).masked_fill(padding[:, None, None], NEVER)


def chosen(scores: Any, causal: Any, padding: Any) -> Any:
    return torch.where(causal | padding[:, None, None], torch.full_like(scores, -1e30), scores)


def added(scores: Any, causal: Any, padding: Any) -> Any:
    return scores + (causal.float() + padding[:, None, None].float()) * -1e30


def subtracted(scores: Any, causal: Any, padding: Any) -> Any:
    """What is seen is taken from one, as transformers once did."""
    sees = (~causal).float() * (padding[:, None, None] == 0).float()
    return scores + (1.0 - sees) * -1e30


def compared(scores: Any, causal: Any, padding: Any) -> Any:
    hidden = causal.float() + padding[:, None, None].float()
    return scores.masked_fill(hidden > 0.5, NEVER)


def allowed(scores: Any, causal: Any, padding: Any) -> Any:
    """The mask of tokens is the other way round, as `scaled_dot_product_attention` has it."""
    sees = causal.logical_and(padding[:, None, None].logical_not())
    return scores.masked_fill(~sees, NEVER)


class Attention(torch.nn.Module):
    """One layer of latent attention; no two sizes are equal."""

    def __init__(self, hide: Hide) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hide = hide
        self.embed = torch.nn.Embedding(50, 40)
        self.q = torch.nn.Linear(40, 3 * 24, bias=False)
        self.kv_a = torch.nn.Linear(40, 32 + 8, bias=False)
        self.kv_b = torch.nn.Linear(32, 3 * (16 + 12), bias=False)
        self.o = torch.nn.Linear(36, 40, bias=False)

    def forward(
        self, input_ids: Any, attn_mask: Any, key_padding_mask: Any, past_c_kv: Any, past_k_pe: Any
    ) -> Any:
        hidden = self.embed(input_ids)
        batch, new, _ = hidden.shape
        query = self.q(hidden).view(batch, new, 3, 24).transpose(1, 2)
        c_kv, k_pe = self.kv_a(hidden).split([32, 8], -1)
        c_kv, k_pe = torch.cat([past_c_kv, c_kv], 1), torch.cat([past_k_pe, k_pe], 1)
        made = self.kv_b(c_kv).view(batch, c_kv.shape[1], 3, 28).transpose(1, 2)
        nope, value = made.split([16, 12], -1)
        rope = k_pe[:, None].expand(-1, 3, -1, -1)
        scores = query @ torch.cat([nope, rope], -1).transpose(-1, -2) * 0.2
        weights = self.hide(scores, attn_mask, key_padding_mask).softmax(-1)
        mean = (weights @ value).transpose(1, 2).reshape(batch, new, 36)
        return hidden + self.o(mean), c_kv, k_pe


def example() -> tuple[Any, ...]:
    masks = torch.zeros(5, 12, dtype=torch.bool), torch.zeros(2, 12, dtype=torch.bool)
    return (torch.ones(2, 5, dtype=torch.long), *masks, torch.zeros(2, 7, 32), torch.zeros(2, 7, 8))


SHAPES = tuple({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO} for _ in NAMES)


@pytest.mark.parametrize("hide", [filled, chosen, added, subtracted, compared, allowed])
def test_programs_are_verified(hide: Hide) -> None:
    program = torch.export.export(Attention(hide).eval(), example(), dynamic_shapes=SHAPES)
    result = mla_opt.optimize(program)
    assert len(result.report.sites) == 1
    interface = TorchGraph(open_program(program).program).interface
    assert interface.attention_mask is not None
    assert interface.attention_mask.name == "key_padding_mask"
    assert interface.attention_mask.hides
    (other,) = interface.others
    assert (other.name, other.hides) == ("attn_mask", hide is not allowed)


@pytest.mark.parametrize("hide", [filled, chosen])
def test_files_are_verified(hide: Hide, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        Attention(hide).eval(),
        example(),
        path,
        dynamo=True,
        dynamic_shapes=SHAPES,
        input_names=NAMES,
        verbose=False,
    )
    assert len(mla_opt.optimize(path).report.sites) == 1
