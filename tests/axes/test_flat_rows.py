"""Rows of which sequences and tokens are one axis, as `view(-1, C)` makes them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import mla_opt
from tests.axes.drawing import outcome
from tests.axes.plan import Plan

H, N, R, V, C, E = 3, 10, 6, 14, 22, 34


class Attention(nn.Module):
    """Latent rows that are flat until keys and values are made of them, or not."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat = flat
        self.q_proj = nn.Linear(E, H * (N + R), bias=False)
        self.kv_a_proj = nn.Linear(E, C + R, bias=False)
        self.norm = nn.LayerNorm(C)
        self.kv_b_proj = nn.Linear(C, H * (N + V), bias=False)

    def forward(self, hidden):
        batch, tokens, _ = hidden.shape
        query = self.q_proj(hidden).view(batch, tokens, H, N + R).transpose(1, 2)
        rows = self.kv_a_proj(hidden)
        if self.flat:
            rows = rows.view(-1, C + R)
        c_kv, k_pe = rows.split([C, R], -1)
        made = self.kv_b_proj(self.norm(c_kv)).view(batch, tokens, H, N + V).transpose(1, 2)
        k_nope, value = made.split([N, V], -1)
        k_pe = k_pe.reshape(batch, 1, tokens, R).expand(batch, H, tokens, R)
        key = torch.cat([k_nope, k_pe], -1)
        return scaled_dot_product_attention(query, key, value, is_causal=True)


def program(flat: bool):
    sizes = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    given = (torch.randn(2, 5, E),)
    return torch.export.export(Attention(flat).eval(), given, dynamic_shapes=(sizes,))


def test_rows_that_are_never_taken_apart_are_refused_by_name():
    with pytest.raises(mla_opt.NothingMatchedError) as caught:
        mla_opt.optimize(program(flat=True), verify=False)
    (refusal,) = caught.value.report.refusals
    assert refusal.code == "rows_flattened"
    assert refusal.nodes == ("layer_norm (layer_norm)",)
    assert "an axis each" in refusal.remedy
    assert len(mla_opt.find(program(flat=False))) == 1


def test_rows_that_are_sliced_flat_are_read_where_they_are_not():
    sliced = Plan(row_rank="bs1r", storage="gemm", mutations=("latent w first 1",))
    found = outcome(sliced)
    assert (found.status, found.matched) == ("equal", 1)
