"""Make `mla_opt/models/demo.onnx`, the model that `mla-opt demo` shows everything on.

    python -m tests.exports.make_demo_model [PATH]

Two layers of transformers' DeepSeek-V3 with seeded random weights, the second with a mixture of
experts, exported with its mask and cache by torch.onnx.export(dynamo=True). Wide enough that
attention is what a decode step spends its time on after some thousand tokens; small enough for a
repository.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import onnx

from tests.exports import exporters
from tests.exports.cache import ROOT
from tests.exports.families import FAMILIES
from tests.exports.flat import FlatCausalLM
from tests.exports.spec import ExportSpec

PATH = ROOT / "mla_opt" / "models" / "demo.onnx"
SPEC = ExportSpec("deepseek_v3", opset=18)
DIMS: dict[str, Any] = {
    "vocab_size": 112,
    "hidden_size": 96,
    "intermediate_size": 52,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 36,
    "kv_lora_rank": 64,
    "q_lora_rank": 44,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 18,
    "max_position_embeddings": 32768,
}
#: What the exporter notes on every node: stack traces, with the folders of whoever ran it.
EXPORTER_NOTES = "pkg."


def make(path: Path) -> None:
    """Export the model to `path`."""
    model = FAMILIES[SPEC.family].build(SPEC.attention, SPEC.dtype, **DIMS)
    exporters.export_dynamo(SPEC, path, FlatCausalLM(model, SPEC.cache).eval())
    proto = onnx.load(path)
    _drop_notes(proto)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _drop_notes(proto: onnx.ModelProto) -> None:
    """Drop the exporter's notes, which are half of the file; the graph itself stays as it is."""
    for holder in (proto.graph, *proto.graph.node, *proto.graph.value_info):
        kept = [each for each in holder.metadata_props if not each.key.startswith(EXPORTER_NOTES)]
        del holder.metadata_props[:]
        holder.metadata_props.extend(kept)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the model of `mla-opt demo`.")
    parser.add_argument(
        "path", type=Path, nargs="?", default=PATH, help="default: where it belongs"
    )
    make(parser.parse_args().path)
