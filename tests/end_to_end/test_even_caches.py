"""Caches in two halves of one width: by whom they can be had, and that nobody mixes them up."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import mla_opt
from mla_opt.errors import InputError, RefusedError
from mla_opt.options import Options
from mla_opt.programs.program_options import program_options
from tests.graphs.latent_block import Block, build, feeds
from tests.kernels.host import run, session
from tests.labels import label
from tests.passes.harness import assert_close, assert_generates_same, check, generate

REAL = Block(
    heads=4, nope=128, rope=64, value=128, latent=512, hidden=8, q_lora=None, cache="expanded"
)
#: A prompt, a step, a chunk that is expanded, and a step; two sequences, one with holes.
STEPS = (40, 1, 30, 1)


def optimized(source: Block | onnx.ModelProto, **options: Any) -> mla_opt.OptimizeResult:
    model = build(source) if isinstance(source, Block) else source
    return mla_opt.optimize(model, cache="even", **options)


def shapes(model: ir.Model, prefix: str) -> dict[str, str]:
    values = (*model.graph.inputs, *model.graph.outputs)
    return {value.name or "": str(value.shape) for value in values if prefix in (value.name or "")}


def steps_with_kernel(model: ir.Model, block: Block) -> list[np.ndarray]:
    """`hidden` of each step, computed by the kernel."""
    runtime, outputs, past = session(check(model)), [], 0
    names = [value.name for value in runtime.get_inputs()]
    kept = {n: np.zeros((2, 1, 0, 288), np.float32) for n in names if n.startswith("past")}
    for query in STEPS:
        given = {**feeds(block, 2, query, past, seed=past), **kept}
        outputs_now = run(runtime, {name: given[name] for name in names})
        made = dict(zip((value.name for value in runtime.get_outputs()), outputs_now))
        kept = {name: made[name.replace("past", "present")] for name in kept}
        outputs.append(made["hidden"])
        past += query
    return outputs


def test_real_widths_by_the_body_and_by_the_kernel() -> None:
    """A row of 512 + 64 numbers in two tensors of 288, under the names of keys and values."""
    result = optimized(REAL)
    assert shapes(result.model, "past.0") == {
        "past.0.keys": "[B,1,P,288]",
        "past.0.values": "[B,1,P,288]",
    }
    assert {site.cache_layout_after for site in result.report.sites} == {"even"}
    assert result.report.sites[0].cache_bytes_per_token_after == 576 * 4
    assert result.report.verification is not None
    assert all(control["detected"] for control in result.report.verification["controls"])
    wanted = generate(build(REAL), REAL, STEPS)
    for seen in (generate(result.model, REAL, STEPS), steps_with_kernel(result.model, REAL)):
        for one, other in zip(seen, wanted, strict=True):
            assert_close(one, other, 2e-5)


FORMS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"cache": "expanded", "layers": 2, "share": True}, {}),
    ({"layers": 2, "cache_names": ("_key_{0}", "_value_{0}")}, {"target": "portable"}),
    ({"latent": 4, "rope": 12, "row_rank": 3}, {"weights": "float"}),
    ({"latent": 6, "rope": 6}, {"weights": "float", "prefill": "expanded"}),
    ({"order": tuple(reversed(range(12)))}, {"absorb": "fold"}),
    ({"cache": "expanded", "bias": "computed", "mask_from": "scores"}, {"absorb": "none"}),
    ({"cache": "expanded", "sink": True}, {"target": "portable", "prefill": "expanded"}),
]


@pytest.mark.parametrize(("options", "asked"), FORMS, ids=label)
def test_numbers_call_by_call(options: dict[str, Any], asked: dict[str, Any]) -> None:
    block = Block(**options)
    result = optimized(block, verify=False, **asked)
    assert {site.cache_layout_after for site in result.report.sites} == {"even"}
    assert_generates_same(block, result.model)


@pytest.mark.parametrize("kept", ["float16", "bfloat16"])
def test_halves_of_16_bits(kept: str) -> None:
    result = optimized(Block(opset=21), cache_type=kept)
    assert result.report.verification is not None
    assert {value.dtype for value in result.model.graph.inputs if "past" in (value.name or "")} == {
        ir.DataType[kept.upper()]
    }


def exchanged(model: ir.Model, *, outputs: bool) -> ir.Model:
    """The operator reads the halves in the other order, and returns them so."""
    copy = ir.from_proto(ir.to_proto(model))
    for node in copy.graph:
        if node.domain == "mla_opt":
            names = [value.name if value is not None else None for value in node.inputs]
            places = [names.index(f"past.0.{half}") for half in ("keys", "values")]
            halves = [node.inputs[place] for place in places]
            for place, half in zip(places, reversed(halves)):
                node.replace_input_with(place, half)
            if outputs:
                first, second = node.outputs[1:3]
                first.name, second.name = "tmp", first.name
                first.name = "present.0.values"
    return copy


@pytest.mark.parametrize("outputs", [False, True])
def test_exchanged_halves_are_noticed(outputs: bool) -> None:
    """Read in the wrong order; also where they are written so, and every step fits the last."""
    source = build(Block())
    good = optimized(source, verify=False).model
    assert mla_opt.verify(source, good).passed
    assert not mla_opt.verify(source, exchanged(good, outputs=outputs)).passed


def test_an_inspection_and_the_interface_tell_of_halves() -> None:
    model = optimized(Block(), verify=False).model
    (operator,) = mla_opt.inspect(model).operators
    assert (operator.cache, operator.qk_rope_head_dim, operator.kv_lora_rank) == ("even", 4, 12)
    (state,) = json.loads(model.metadata_props["mla_opt.interface"])["states"]
    assert state["layout"] == "even"
    assert state["optimized"]["inputs"] == ["past.0.keys", "past.0.values"]


REFUSED: dict[str, tuple[Block, str]] = {
    "odd": (Block(latent=11), r"a row has 15 numbers \(C \+ R\), which is odd"),
    "one tensor": (Block(cache="packed"), "its halves need two tensors, and it is in 1"),
    "no rotary part": (Block(rope=0), "its halves need two tensors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_have_no_halves(case: str) -> None:
    block, message = REFUSED[case]
    with pytest.raises(RefusedError, match=f"cache even cannot be had for 1 of 1.*{message}"):
        optimized(block)


def test_without_a_cache_there_is_nothing_to_do() -> None:
    result = optimized(Block(cache="none"), verify=False)
    assert {site.cache_layout_after for site in result.report.sites} == {"rows"}


def test_programs_have_none() -> None:
    with pytest.raises(InputError, match="cache 'even' is not for PyTorch programs"):
        program_options(Options(cache="even"))
