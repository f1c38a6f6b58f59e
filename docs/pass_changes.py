"""What each pass changes, from real runs on the model that comes along: for the page of passes."""

from __future__ import annotations

import difflib
import logging
from typing import Any

import onnx_ir as ir

from mla_opt.files.model_io import read_model
from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.graphs.onnx.opset import at_least
from mla_opt.models import demo_model
from mla_opt.options import Options

#: Options with which the passes are shown at work; those of the last are for a model in 4 bits.
RUNS: tuple[dict[str, Any], ...] = (
    {},
    {"weights": "float"},
    {"cache": "packed"},
    {"cache": "static:64"},
    {"cache": "packed", "cache_type": "bfloat16"},
    {"cache": "static:64", "cache_type": "int8"},
    {"target": "portable"},
    {"target": "tensorrt", "cache": "static:64"},
    {"target": "onnxruntime-paged", "cache_type": "bfloat16"},
    {"matmul_nbits": "kernel"},
)
#: What is shown of a change.
MOST_LINES, LONGEST = 24, 160


def changes() -> dict[str, str]:
    """What each pass changed in a model, in the first of the runs in which it changed something."""
    found: dict[str, str] = {}
    for options in RUNS:
        before: list[str] = []

        def observe(
            place: int,
            count: int,
            step: Any,
            record: Any,
            graph: Any,
            before: list[str] = before,
            options: dict[str, Any] = options,
        ) -> None:
            after = _nodes(graph)
            if record is not None and after != before and step.name not in found:
                found[step.name] = _difference(options, before, after)
            before[:] = after

        chosen = Options(**options)
        model = _in_4_bits() if "matmul_nbits" in options else read_model(demo_model())
        graph = OnnxGraph(at_least(model, chosen.least_opset))
        chosen.pipeline().run(graph, observe)
    return found


def _in_4_bits() -> ir.Model:
    """The model with MatMulNBits in the place of MatMul, as ONNX Runtime quantizes it."""
    import onnx

    quiet = logging.NullHandler()
    logging.root.addHandler(quiet)  # without one, this import makes all of the process talk
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.root.removeHandler(quiet)
    model = onnx.load(demo_model())
    quantizer = MatMulNBitsQuantizer(model, bits=4, block_size=32, accuracy_level=4)
    quantizer.process()
    quantized: onnx.ModelProto = quantizer.model.model
    return ir.from_proto(quantized)


def _nodes(graph: Any) -> list[str]:
    """A line a node."""
    return [
        f"{', '.join(str(each.name) for each in node.outputs)}"
        f" = {node.domain + '::' if node.domain else ''}{node.op_type}"
        f"({', '.join('' if each is None else str(each.name) for each in node.inputs)})"
        for node in graph.nodes()
    ]


def _difference(options: dict[str, Any], before: list[str], after: list[str]) -> str:
    lines = [each for each in difflib.ndiff(before, after) if each[:2] in ("- ", "+ ")]
    first_layer = [each for each in lines if ".1." not in each] or lines
    shown = [each[:LONGEST] for each in first_layer[:MOST_LINES]]
    rest = len(first_layer) - len(shown)
    said = [*shown, f"  ... and {rest} more"] if rest else shown
    told = ", ".join(f"`--{name.replace('_', '-')} {value}`" for name, value in options.items())
    model = "the model of `mla-opt demo`" + (" in 4 bits" if "matmul_nbits" in options else "")
    title = f"In {model}, first layer{', with ' + told if told else ''}"
    code = "\n".join(["```diff", *said, "```"])
    return f"<details markdown><summary markdown>{title}</summary>\n\n{code}\n\n</details>"
