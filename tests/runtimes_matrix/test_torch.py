"""PyTorch runs every form of a program at the head widths of released models."""

from __future__ import annotations

import functools
from typing import Any

import pytest

import mla_opt
from tests.runtimes_matrix.forms import CALLS, FORMS, TOLERANCE, Sizes

torch = pytest.importorskip("torch")

H, N, R, V, C, E = 4, 128, 64, 128, 512, 96
LAYERS = 2
#: Buffers that are written in place are not for programs.
PROGRAM_FORMS = [n for n in FORMS if FORMS[n].get("cache") not in ("static", "even")]


class Attention(torch.nn.Module):
    """Latent attention as the model code has it: keys and values of every head, made anew."""

    def __init__(self) -> None:
        super().__init__()
        linear = functools.partial(torch.nn.Linear, bias=False)
        self.q_proj, self.o_proj = linear(E, H * (N + R)), linear(H * V, E)
        self.kv_a, self.kv_b = linear(E, C + R), linear(C, H * (N + V))

    def forward(self, x: Any, mask: Any, past: Any) -> tuple[Any, Any, Any]:
        batch, new, _ = x.shape
        latent, rope = self.kv_a(x).unsqueeze(1).tanh().split([C, R], -1)
        latent, rope = torch.cat([past[0], latent], 2), torch.cat([past[1], rope], 2)
        made = self.kv_b(latent).view(batch, -1, H, N + V).transpose(1, 2)
        nope, values = made.split([N, V], -1)
        keys = torch.cat([nope, rope.expand(-1, H, -1, -1)], -1)
        query = self.q_proj(x).view(batch, new, H, N + R).transpose(1, 2)
        attend = torch.nn.functional.scaled_dot_product_attention
        output = attend(query, keys, values, attn_mask=mask, scale=1.0)
        return self.o_proj(output.transpose(1, 2).reshape(batch, new, H * V)), latent, rope


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(Attention() for _ in range(LAYERS))

    def forward(self, x: Any, mask: Any, *past: Any) -> tuple[Any, ...]:
        caches = []
        for place, layer in enumerate(self.layers):
            x, *rows = layer(x, mask, past[2 * place : 2 * place + 2])
            caches += rows
        return (x, *caches)


def arguments(sizes: Sizes) -> tuple[Any, ...]:
    torch.manual_seed(1)
    batch, new, past = sizes.batch, sizes.query, sizes.past
    mask = torch.ones(batch, 1, new, past + new, dtype=torch.bool).tril(past)
    mask[0, :, :, : sizes.padding] = False
    caches = (torch.randn(batch, 1, past, width) for _ in range(LAYERS) for width in (C, R))
    return (torch.randn(batch, new, E), mask, *caches)


@pytest.fixture(scope="module")
def program() -> Any:
    dim = torch.export.Dim.AUTO
    shapes = ({0: dim, 1: dim}, {0: dim, 2: dim, 3: dim}, ({0: dim, 2: dim},) * 2 * LAYERS)
    example = arguments(Sizes(2, 5, 11))
    return torch.export.export(Model(), example, dynamic_shapes=shapes)


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
@pytest.mark.parametrize("form", PROGRAM_FORMS)
def test_a_form_of_a_program(program: Any, form: str, target: Any) -> None:
    result = mla_opt.optimize(program, target=target, verify=False, **FORMS[form])
    assert len(result.report.sites) == LAYERS
    packed = FORMS[form].get("cache") == "packed"
    optimized, original = result.model.module(), Model()
    for sizes in CALLS:
        given = arguments(sizes)
        with torch.no_grad():
            wanted = _laid_out(original(*given), packed, 1)
            seen = _call(optimized, given, packed)
        for place, (got, right) in enumerate(zip(seen, wanted, strict=True)):
            assert got.shape == right.shape
            error = (got - right).abs().max() / right.std()
            assert error < TOLERANCE, (sizes, place, float(error))


@pytest.mark.parametrize("form", ["absorbed", "packed absorbed", "auto"])
def test_a_portable_program_has_aten_operators_alone_or_says_so(program: Any, form: str) -> None:
    result = mla_opt.optimize(program, target="portable", verify=False, **FORMS[form])
    called = {str(node.target) for node in result.model.graph.nodes if node.op == "call_function"}
    others = {name for name in called if not name.startswith(("aten.", "<built-in function"))}
    notes = [note for note in result.report.notes if "torch.cond" in note]
    assert (others, len(notes)) == (({"cond"}, 1) if form == "auto" else (set(), 0))


def _call(optimized: Any, given: tuple[Any, ...], packed: bool) -> tuple[Any, ...]:
    """A program whose caches have changed takes and returns everything by name."""
    if not packed:
        return tuple(optimized(*given))
    names = ("x", "mask", "past_latent", "past_latent_2")
    return tuple(optimized(**dict(zip(names, _laid_out(given, True, 2), strict=True))).values())


def _laid_out(values: tuple[Any, ...], packed: bool, first: int) -> tuple[Any, ...]:
    """The caches from ``first`` on in pairs, or both halves of a layer in one."""
    if not packed:
        return values
    pairs = zip(*(iter(values[first:]),) * 2)
    return (*values[:first], *(torch.cat(pair, -1) for pair in pairs))
