"""`RankSession`: one rank's part of a model that several processes share, a file for each.

In such a file the heads are a rank's own, and behind each ``o_proj`` a node `AllReduce` of
``com.microsoft`` adds up what all ranks have. The packages of ONNX Runtime have no kernel for it:
the graph is run up to such nodes, the caller's function sums, and the graph goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from mla_opt.errors import InputError
from mla_opt.runtimes.onnxruntime.decoder import typed_value
from mla_opt.runtimes.onnxruntime.sessions import ModelLike, read_graph, session
from mla_opt.verification.extent import collectives
from mla_opt.verification.onnx.sessions import ORT_ERRORS
from mla_opt.verification.running import RunError

Array = npt.NDArray[Any]
#: Replaces an array by the sum of what all ranks have, in place. Ranks call it in one order.
AllReduce = Callable[[Array], object]

ALL_REDUCE = "AllReduce"


@dataclass(frozen=True, slots=True)
class _Part:
    """What is run between two sums: names of what is fed, what comes out, and what is summed."""

    session: ort.InferenceSession
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sums: tuple[tuple[str, str], ...]


class RankSession:
    """Runs one rank's file; every rank runs its own, with the same inputs, at the same time.

    Attributes:
        label: how messages call the model.
        inputs: names of what is fed.
        outputs: names of what comes back.
    """

    def __init__(self, model: ModelLike, all_reduce: AllReduce, **options: Any) -> None:
        """Load all parts.

        Args:
            model: a path, the bytes of a file, or a model in memory, optimized or not.
            all_reduce: sums an array over all ranks, in place.
            options: those of `session`.

        Raises:
            InputError: the model cannot be read or loaded, has no `AllReduce`, has one inside a
                branch or a loop, or talks to other ranks in other ways.
        """
        self.label, graph = read_graph(model)
        _check(self.label, graph)
        self._all_reduce = all_reduce
        self.inputs = tuple(value.name or "" for value in graph.graph.inputs)
        self.outputs = tuple(value.name or "" for value in graph.graph.outputs)
        self._parts = _load(graph, options)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name; floats of 16 bits as NumPy has them, so no bfloat16.

        Raises:
            InputError: an input is not fed.
            RunError: ONNX Runtime failed. The other ranks may then wait in a sum for ever.
        """
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise InputError(f"{self.label}: is not fed {', '.join(missing)}")
        known = dict(feeds)
        for part in self._parts:
            try:
                made = part.session.run(part.outputs, {name: known[name] for name in part.inputs})
            except ORT_ERRORS as error:
                reason = " ".join(str(error).split())[:400]
                raise RunError(f"{self.label}: ONNX Runtime does not run it: {reason}") from error
            known.update(zip(part.outputs, made))
            for source, target in part.sums:
                known[target] = np.array(known[source], order="C")
                self._all_reduce(known[target])
        return {name: known[name] for name in self.outputs}


def _check(label: str, model: ir.Model) -> None:
    others = [name for name in collectives(model) if name != ALL_REDUCE]
    if others:
        raise InputError(f"{label}: talks to other ranks by {', '.join(others)}, not sums alone")
    inside = {node for node in model.graph.all_nodes() if _sums(node)} - set(model.graph)
    if inside or not any(map(_sums, model.graph)):
        where = "in a branch or a loop, where it cannot be cut" if inside else "nowhere"
        raise InputError(
            f"{label}: has {ALL_REDUCE} {where}; a rank's file has one behind each part that is"
            " summed. Open a file of one process with `session`"
        )


def _sums(node: ir.Node) -> bool:
    return node.domain == "com.microsoft" and node.op_type == ALL_REDUCE


def _load(model: ir.Model, options: dict[str, Any]) -> tuple[_Part, ...]:
    """Cut behind the sums. Types of what is handed on are told by the part that makes it."""
    levels = _levels(model.graph)
    parts, types = [], {value.name or "": value for value in model.graph.inputs}
    for level in range(max(levels.values()) + 1):
        part = _part(model, levels, level, types, options)
        if part is None:
            break
        parts.append(part)
        made = {each.name: typed_value(each) for each in part.session.get_outputs()}
        types |= made | {target: made[source] for source, target in part.sums}
    return tuple(parts)


def _levels(graph: ir.Graph) -> dict[ir.Value, int]:
    """How many sums lie before each value, one behind the other; nothing for stored tensors."""
    levels = dict.fromkeys(graph.inputs, 0)
    for node in graph:
        level = max((levels.get(value, 0) for value in _reads(node)), default=0)
        levels |= dict.fromkeys(node.outputs, level + _sums(node))
    return levels


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node is fed, and what its branches take from around it, among other values."""
    inner = [each for graph in _bodies(node) for each in graph.all_nodes()]
    returned = (value for graph in _bodies(node) for value in graph.outputs)
    for value in (*(value for each in (node, *inner) for value in each.inputs), *returned):
        if value is not None:
            yield value


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _part(
    model: ir.Model,
    levels: dict[ir.Value, int],
    level: int,
    types: dict[str, ir.Value],
    options: dict[str, Any],
) -> _Part | None:
    """What is run behind ``level`` sums, and what is summed then; nothing where all is done."""
    here = [node for node in model.graph if levels[node.outputs[0]] - _sums(node) == level]
    nodes, sums = [n for n in here if not _sums(n)], [n for n in here if _sums(n)]
    if not nodes:
        return None
    chosen = set(nodes)
    own = {value for node in nodes for value in node.outputs}
    read = {value for node in nodes for value in _reads(node)}
    wanted = {v for node in model.graph if node not in chosen for v in _reads(node)}
    wanted.update(model.graph.outputs)
    given = [value for value in levels if value in read - own]
    outputs = [value for value in levels if value in own & wanted]
    cut = ir.convenience.extract(model.graph, given, outputs)
    for copy in cut.inputs:
        told = types[copy.name or ""]
        copy.type, copy.shape = told.type, copy.shape or told.shape
    functions = [function.clone() for function in model.functions.values()]
    loaded = session(ir.Model(cut, ir_version=model.ir_version, functions=functions), **options)
    pairs = tuple((_name(node.inputs[0]), _name(node.outputs[0])) for node in sums)
    return _Part(loaded, tuple(map(_name, given)), tuple(map(_name, outputs)), pairs)


def _name(value: ir.Value | None) -> str:
    return (value.name if value is not None else None) or ""
