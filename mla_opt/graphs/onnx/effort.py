"""How long a part of a graph takes to run, told before it is run.

Parts are run to learn shapes and matrices. A file can ask there for a loop of 2^62 trips or for a
tensor of 2^40 elements, so what is run is counted first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import onnx_ir as ir

from mla_opt.handles import Array

MOST_STEPS = 1 << 18
"""Nodes that one run of a part may take, each trip of a loop counted."""

MOST_ELEMENTS = 1 << 32
"""Elements of all tensors that a part may make on its way, together: some seconds of work."""

MOST_ALIVE = 1 << 28
"""Elements of the tensors of a part that may be in memory at one time: 1 GiB in float32.

What is fed, and what is made of the results, takes up to three times as much besides. The largest
matrices of an attention in use, DeepSeek-V3's, have 2^27.
"""

Known = Callable[[ir.Value], Array | None]


def steps(
    node: ir.Node, known: Known, functions: dict[ir.OperatorIdentifier, ir.Function]
) -> float:
    """Nodes that run for ``node``, those of its branches and of the functions it calls included.

    A loop whose trips ``known`` does not tell is infinite.
    """
    body = functions.get(node.op_identifier())
    if body is not None:
        return sum(steps(each, lambda value: None, functions) for each in body)
    inner = sum(steps(each, known, functions) for branch in branches(node) for each in branch)
    return 1 + (_trips(node, known) * inner if inner else 0)


def most_alive(
    nodes: Sequence[ir.Node],
    kept: Collection[ir.Value],
    shape: Callable[[ir.Value], tuple[int, ...] | None],
) -> int:
    """The most elements in memory at one time while nodes run in order and ``kept`` stays.

    A tensor of unknown shape counts as one element.
    """
    last = {value: place for place, node in enumerate(nodes) for value in node.inputs}
    alive = most = 0
    for place, node in enumerate(nodes):
        alive += sum(_elements(shape(value)) for value in node.outputs)
        most = max(most, alive)
        done = {value for value in node.inputs if last[value] == place} | {
            value for value in node.outputs if value not in last
        }
        made = (value for value in done if value is not None and value.producer() is not None)
        alive -= sum(_elements(shape(value)) for value in made if value not in kept)
    return most


def _elements(shape: tuple[int, ...] | None) -> int:
    return math.prod(shape or ())


def _trips(node: ir.Node, known: Known) -> float:
    if node.op_type == "If":
        return 1
    count = node.inputs[0] if node.op_type == "Loop" and node.inputs else None
    content = None if count is None else known(count)
    return math.inf if content is None or content.size != 1 else float(content.reshape(-1)[0])


def branches(node: ir.Node) -> Sequence[ir.Graph]:
    """The graphs that a node holds."""
    held: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            held.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
            held.extend(attribute.as_graphs())
    return held
