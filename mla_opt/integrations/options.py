"""The options of `mla_opt.optimize`, as tools declare options: a type, a default, a line of help.

One table for all tools, with the names that the Python API has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from mla_opt.options import Absorb, CacheType, MatmulNbits, Phase, Target, Weights
from mla_opt.sites import PrefillForm


@dataclass(frozen=True, slots=True)
class Option:
    """One option: what it may be, what it is if nothing is said, and what it means."""

    kind: Any
    default: Any
    meaning: str


OPTIONS: Mapping[str, Option] = MappingProxyType(
    {
        "target": Option(
            Target,
            "onnxruntime",
            "onnxruntime: the fused operator with its function body. portable: standard operators"
            " only. onnxruntime-paged: ONNX Runtime's own operator. tensorrt: the graph of one"
            " phase of an engine.",
        ),
        "absorb": Option(
            Absorb,
            "auto",
            "What becomes of W_UK and W_UV: two small matrices (factored), multiplied into their"
            " neighbours (fold-q, fold-o, fold), or what the cost model says (auto).",
        ),
        "cache": Option(
            str,
            "keep",
            "keep, packed, even or static[:ROWS]: the model's own cache tensors, one latent tensor"
            " a layer, two of half its width, or buffers that are written in place.",
        ),
        "cache_type": Option(
            CacheType,
            "keep",
            "Keeps the cache of a float32 model in 16 bits, or in 8 with scales (int8, fp8).",
        ),
        "prefill": Option(
            PrefillForm, "auto", "The form for long queries; auto: the cheaper one at each length."
        ),
        "verify": Option(
            bool | Literal["auto", "whole", "by-layer"],
            True,
            "Runs both models and compares before anything is written; by-layer: only the parts"
            " that differ, one at a time.",
        ),
        "passes": Option(list[str] | None, None, "Names of passes to run in place of the usual."),
        "phase": Option(Phase, "decode", "For the target tensorrt: which of its two graphs."),
        "plugin": Option(
            bool, True, "For the target tensorrt: whether the operator stays, for the plugin."
        ),
        "keep_activation_quantization": Option(
            bool,
            False,
            "Refuses attentions whose activations are quantized; if not, they are rewritten"
            " without that, and the report says so.",
        ),
        "weights": Option(
            Weights,
            "auto",
            "keep: one operator holds W_UK and W_UV in the bits that the model stores them in."
            " float: in the type of the queries. auto: keep where that is possible.",
        ),
        "matmul_nbits": Option(
            MatmulNbits,
            "keep",
            "kernel: the kernel library runs MatMulNBits of accuracy level 4.",
        ),
        "allow_unmatched": Option(
            bool, False, "Gives the model as it is if no latent attention is found."
        ),
    }
)


def chosen(settings: Any) -> dict[str, Any]:
    """The keyword arguments of `mla_opt.optimize` that an object of a tool has as attributes."""
    return {name: getattr(settings, name) for name in OPTIONS}
