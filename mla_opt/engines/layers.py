"""What TensorRT made of a network: its own list of layers, and what became of each attention.

The builder prints the list when asked for details; that works without a GPU, where no engine can
be opened to be inspected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mla_opt.options import Phase

Became = Literal["plugin", "fused", "operators", "unknown"]

_LAYER = re.compile(r"Name: (.*?), LayerType: (\w+), ")
_TENSOR = re.compile(r"\{ Name: ([^,]*), ")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
#: Layers that run nothing on the GPU.
_FREE = frozenset({"shape_call", "signal", "wait", "NoOp", "ShapeHostToDevice", "Constant"})
#: The nodes that attend, of those that the lowering makes for a site (`mla_opt.emission`).
_ATTENDING = {
    "prefill": ("attention/Attention",),
    "decode": ("new_cache/", "rows_flat/", "products/", "weights/", "context/"),
}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an engine.

    Attributes:
        name: TensorRT's own.
        kind: its type, such as ``gemm``, ``kgen`` or ``PluginV3``.
        inputs: names of the tensors that it reads.
        outputs: names of the tensors that it writes.
        nodes: names of the ONNX nodes that are in it, as far as TensorRT tells.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def runs(self) -> bool:
        """Whether it runs a kernel."""
        return self.kind not in _FREE


@dataclass(frozen=True, slots=True)
class AttentionLayers:
    """What became of one attention, and the kernels that do its work."""

    name: str
    became: Became
    kernels: tuple[str, ...]


def read_layers(lines: Iterable[str]) -> tuple[Layer, ...]:
    """Read the layers from the lines of a build's log; none where it does not list them."""
    text = "\n".join(lines)
    begin = text.rfind("\nLayers:")
    if begin < 0:
        return ()
    found: list[Layer] = []
    for line in text[begin:].splitlines()[2:]:
        match = _LAYER.match(line)
        if match is None:
            if line.startswith("I/O Tensors"):
                break
            continue
        inputs, outputs = _between(line, "Inputs: "), _between(line, "Outputs: ")
        nodes = tuple(_NODE.findall(line))
        found.append(Layer(match[1], match[2], inputs, outputs, nodes))
    return tuple(found)


def _between(line: str, start: str) -> tuple[str, ...]:
    """Names of the tensors of a list that begins at ``start``."""
    place = line.find(start)
    rest = line[place + len(start) :] if place >= 0 else ""
    end = re.search(r"\], (?:Constants|Outputs|TacticName|ParameterType|TacticValue)", rest)
    return tuple(_TENSOR.findall(rest[: end.start()] if end else rest))


def attention_layers(
    layers: Sequence[Layer], sites: Iterable[str], phase: Phase
) -> tuple[AttentionLayers, ...]:
    """Tell what became of every attention, by the nodes that are in the layers."""
    return tuple(_of_site(layers, site, phase) for site in sites)


def _of_site(layers: Sequence[Layer], site: str, phase: Phase) -> AttentionLayers:
    prefix = f"{site}/mla/"
    plugins = [each.name for each in layers if _is_plugin(each, f"{prefix}latent_attention/")]
    if plugins:
        return AttentionLayers(site, "plugin", tuple(plugins))
    parts = tuple(prefix + part for part in _ATTENDING[phase])
    own = [each for each in layers if each.runs and _has(each, parts)]
    if not own:
        return AttentionLayers(site, "unknown", ())
    fused = [each for each in own if "mha" in each.name]
    chosen = fused if phase == "prefill" and fused else own
    became: Became = "fused" if phase == "prefill" and fused else "operators"
    return AttentionLayers(site, became, tuple(each.name for each in chosen))


def _is_plugin(layer: Layer, prefix: str) -> bool:
    return layer.kind.startswith("Plugin") and layer.name.startswith(prefix)


def _has(layer: Layer, parts: tuple[str, ...]) -> bool:
    return any(node.startswith(parts) for node in layer.nodes)


def written_in_place(layers: Sequence[Layer], caches: Iterable[tuple[str, str]]) -> bool:
    """Whether no layer copies a cache to where its new rows are returned.

    ``caches`` are names of the inputs and the outputs. A cache that a kernel updates is named as
    the output on both of its sides; one that a plugin updates has both names.
    """
    return all(_in_place(layers, past, present) for past, present in caches)


def _in_place(layers: Sequence[Layer], past: str, present: str) -> bool:
    writers = [each for each in layers if present in each.outputs]
    return len(writers) == 1 and bool({past, present} & set(writers[0].inputs))
