from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from mla_opt.graphs.interface.interface import ModelInterface
from mla_opt.verification.alignment import Aligner
from mla_opt.verification.interface_map import InterfaceMap
from mla_opt.verification.oracle import Call, Run, optimized_driver
from mla_opt.verification.parity import Tolerance, compare
from mla_opt.verification.scenarios import Scenario
from tests.verify import toys

RAGGED = Scenario("ragged", 2, (4,), (2, 0))
TOLERANCE = Tolerance.for_bytes(4, {})


def interface(model):
    return ModelInterface.of(ir.from_proto(model))


def aligner(original, optimized, changes=None):
    found = InterfaceMap() if changes is None else InterfaceMap.from_json(json.dumps(changes))
    return Aligner(interface(original), interface(optimized), found)


def call(**changes):
    """One call on four tokens, the first two of row 0 padding."""
    noise = np.random.default_rng(0).standard_normal
    values = {
        "logits": noise((2, 4, 23)),
        "present_0_keys": noise((2, 1, 4, toys.LATENT)),
        "present_0_values": noise((2, 1, 4, toys.ROPE)),
    }
    for name, index in changes.items():
        values[name][index] += 1
    outputs = {"logits": values.pop("logits")}
    return Call(4, 0, outputs, values)


def run(**changes):
    return Run(RAGGED, (call(**changes),))


KEEP = aligner(toys.original(), toys.optimized())


@pytest.mark.parametrize(
    ("name", "padding", "valid"),
    [
        ("logits", (0, 1), (0, 2)),
        ("present_0_keys", (0, 0, 1), (0, 0, 2)),
        ("present_0_values", (0, 0, 1), (1, 0, 1)),
    ],
)
def test_what_is_padding_is_not_compared_and_what_is_not_is(name, padding, valid):
    assert compare(KEEP, run(), run(**{name: padding}), TOLERANCE).passed
    failed = compare(KEEP, run(), run(**{name: valid}), TOLERANCE)
    assert [o.name for o in failed.outputs if not o.passed] == [name]


def test_the_query_axis_is_the_one_the_file_names():
    """With four heads and four tokens, sizes alone say nothing."""
    model = toys.original()
    shape = model.graph.output[0].type.tensor_type.shape
    heads = type(shape.dim[0])(dim_value=4)
    shape.ClearField("dim")
    for size in ("B", heads, "S", "V"):
        shape.dim.append(size if size is heads else type(heads)(dim_param=size))
    both = Aligner(interface(model), interface(model), InterfaceMap())

    def per_head(index=None):
        logits = np.random.default_rng(0).standard_normal((2, 4, 4, 5))
        if index is not None:
            logits[index] += 1
        return Run(RAGGED, (Call(4, 0, {"logits": logits}, {}),))

    assert compare(both, per_head(), per_head((0, 3, 1)), TOLERANCE).passed
    assert not compare(both, per_head(), per_head((0, 1, 3)), TOLERANCE).passed


def test_a_run_that_ends_early_fails_though_what_it_said_was_right():
    cut_short = Run(RAGGED, run().calls, "out of memory")
    result = compare(KEEP, run(), cut_short, TOLERANCE)
    assert all(o.passed for o in result.outputs)
    assert not result.passed


def test_a_run_that_said_nothing_fails():
    assert not compare(KEEP, run(), Run(RAGGED, ()), TOLERANCE).passed


def test_a_past_is_translated_to_every_layout():
    noise = np.random.default_rng(0).standard_normal
    past = {
        "past_0_keys": noise((2, 1, 3, toys.LATENT)).astype(np.float32),
        "past_0_values": noise((2, 1, 3, toys.ROPE)).astype(np.float32),
    }
    rows = np.concatenate(list(past.values()), axis=-1)
    empty = np.zeros((2, 1, 3, toys.ROW), np.float32)
    packed = aligner(toys.original(), toys.optimized_packed(), toys.PACKED_MAP)
    assert np.array_equal(packed.translate(past, {"past_0_latent": empty})["past_0_latent"], rows)
    static = aligner(toys.original(), toys.optimized_static(), toys.STATIC_MAP)
    known = optimized_driver(ir.from_proto(toys.optimized_static()), static.changes).interface
    buffer = np.zeros((2, 1, toys.CAPACITY, toys.ROW), np.float32)
    filled = replace(static, optimized=known).translate(past, {"buffer": buffer})["buffer"]
    assert np.array_equal(filled[:, :, :3], rows)
    assert not filled[:, :, 3:].any()


def test_expanded_heads_are_not_latent_rows_even_where_the_widths_agree():
    entry = toys.state("packed", ["past_0_latent"], ["present_0_latent"]) | {
        "kv_lora_rank": toys.NOPE + toys.ROPE,
        "qk_rope_head_dim": toys.VALUE,
    }
    heads = aligner(toys.original_expanded(), toys.optimized_packed(), toys.interface(entry))
    assert not heads.can_share_a_past()
    latent = aligner(toys.original(), toys.optimized_packed(), toys.PACKED_MAP)
    assert latent.can_share_a_past()
