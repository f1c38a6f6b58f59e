"""How wide a state has to be whose width its model leaves open.

    conv_state [B, D, w] --+
                           +--> Concat [B, D, w + S] --> Conv, kernel 4 [B, D, w + S - 3] --> ...
    new rows   [B, D, S] --+

Such a width counts neither sequences nor tokens: it is a constant of the model that its exporter
did not write down. A state comes out as wide as it went in, and any width will do of which
something is left on the way: the sizes that the file states of its values are at least 1, with one
new token, from the least such width on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from mla_opt.graphs.interface.dims import (
    UNKNOWN_SIZE,
    Port,
    Size,
    evaluate,
    is_expression,
    read_size,
)
from mla_opt.graphs.interface.states import State

#: Convolutions of models reach back a few tokens; no sizes are tried beyond this.
MOST = 256


def with_widths(
    graph: ir.Graph, states: Sequence[State], counted: frozenset[Size]
) -> tuple[State, ...]:
    """Return the states with numbers for widths that the file leaves open.

    ``counted`` are the symbols whose meaning is known. One of which the file says nothing stays.
    """
    widths = _open_widths(graph, states, counted)
    return tuple(replace(state, input=_numbered(state.input, widths)) for state in states)


def _numbered(port: Port, widths: Mapping[str, int]) -> Port:
    if port.axes is None:
        return port
    sizes = (widths.get(str(axis.size), axis.size) for axis in port.axes)
    return replace(port, axes=tuple(replace(a, size=s) for a, s in zip(port.axes, sizes)))


def _open_widths(
    graph: ir.Graph, states: Sequence[State], counted: frozenset[Size]
) -> dict[str, int]:
    """A number for each symbol among the states' sizes that counts nothing."""
    symbols = {
        size
        for state in states
        for size in state.input.sizes
        if isinstance(size, str) and not is_expression(size) and size not in counted
    }
    if not symbols:
        return {}
    stated: dict[str, list[str]] = {}
    for expression in dict.fromkeys(_expressions(graph)):
        for symbol in _names(expression) & symbols:
            stated.setdefault(symbol, []).append(expression)
    least = {symbol: _least_of(symbol, sizes) for symbol, sizes in stated.items()}
    return {symbol: value for symbol, value in least.items() if value is not None}


def _least_of(symbol: str, expressions: list[str]) -> int | None:
    """The least value with which none of the sizes is below 1; None where they do not say."""
    others = dict.fromkeys(set().union(*map(_names, expressions)), 1)
    known = [each for each in expressions if evaluate(each, others) is not None]
    for value in range(UNKNOWN_SIZE, MOST) if known else ():
        sizes = (evaluate(each, {**others, symbol: value}) for each in known)
        if all(size is None or size >= 1 for size in sizes):
            return value
    return None


def _expressions(graph: ir.Graph) -> Iterator[str]:
    for node in graph.all_nodes():
        for value in node.outputs:
            for dim in value.shape or ():
                size = read_size(dim)
                if isinstance(size, str) and is_expression(size):
                    yield size


def _names(expression: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_]\w*", expression))
