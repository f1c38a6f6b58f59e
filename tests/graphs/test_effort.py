"""What running a part of a graph takes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import mla_opt
from mla_opt.graphs.onnx import parts
from mla_opt.graphs.onnx.binding import UnboundValueError
from mla_opt.graphs.onnx.effort import most_alive
from mla_opt.graphs.onnx.integer_rules import content_of
from mla_opt.graphs.onnx.integers import Ramp, entries, vector
from mla_opt.graphs.onnx.shape_rules.facts import unknown_sizes
from mla_opt.matching import shapes_of_rows
from tests.graphs.latent_block import Block, build
from tests.passes.harness import graph_of, value


def chain(*, keep_first: bool) -> tuple[list[ir.Node], list[ir.Value], dict[ir.Value, int]]:
    """Three nodes one behind the other that make 10, 1000 and 100 numbers, and what is kept."""
    given = ir.Value(name="given")
    nodes, last = [], given
    for place in range(3):
        nodes.append(ir.Node("", "Made", [last, given], name=f"node_{place}"))
        last = nodes[-1].outputs[0]
    counts = {node.outputs[0]: count for node, count in zip(nodes, (10, 1000, 100))}
    return nodes, [nodes[0].outputs[0], last] if keep_first else [last], {given: 5, **counts}


@pytest.mark.parametrize(("keep_first", "most"), [(False, 1100), (True, 1110)])
def test_what_is_read_no_more_is_not_in_memory(keep_first, most):
    nodes, kept, counts = chain(keep_first=keep_first)
    assert most_alive(nodes, kept, lambda each: (counts[each],)) == most


def test_what_nobody_reads_is_in_memory_while_it_is_made():
    nodes, _, counts = chain(keep_first=False)
    unread = ir.Node("", "Made", [nodes[0].outputs[0]], name="unread")
    counts[unread.outputs[0]] = 7000
    order = [nodes[0], unread, *nodes[1:]]
    assert most_alive(order, [nodes[-1].outputs[0]], lambda each: (counts[each],)) == 7010


def test_a_part_that_needs_too_much_memory_is_not_run(monkeypatch):
    monkeypatch.setattr(parts, "MOST_ALIVE", 100)
    graph = graph_of(Block())
    rows = {value(graph.model, "present.0.keys"): np.ones((2, 1, 7, 12), np.float32)}
    with pytest.raises(UnboundValueError, match=r"more than 100 elements.*free sizes"):
        graph.bind(2, 4, 3).run([value(graph.model, "made_0")], rows)


class OfNothing:
    """Facts of a graph about which nothing is known."""

    def shape(self, value):
        return None

    def integers(self, value):
        return None

    def unknown(self):
        return 7


@pytest.mark.parametrize(
    ("asked", "least", "sizes"),
    [
        ((3,), 0, ((7, 7, 7),)),
        ((2,), 3, ((7, 7, 7),)),
        ((64,), 0, ((7,) * 64,)),
        ((65,), 0, ()),
        ((1 << 31,), 0, ()),
        ((), 0, ()),
        (None, 0, ()),
    ],
    ids=str,
)
def test_a_shape_of_unknown_sizes_has_axes_like_a_tensor(asked, least, sizes):
    assert unknown_sizes(OfNothing(), asked, least) == sizes


@pytest.mark.parametrize(
    ("start", "limit", "delta", "listed"),
    [
        (0, 7, 1, list(range(7))),
        (5, -3, -2, [5, 3, 1, -1]),
        (3, 3, 1, []),
        (0, 4096, 1, list(range(4096))),
        (0, 4097, 1, None),
        (0, 1 << 31, 1, None),
        (0, 1 << 62, 1, None),
        (1 << 62, -(1 << 62), -1, None),
    ],
)
def test_a_range_is_not_listed_to_tell_its_numbers(start, limit, delta, listed):
    operands = [ir.Value(name=name) for name in ("start", "limit", "delta")]
    numbers = dict(zip(operands, (start, limit, delta)))

    class Facts(OfNothing):
        def integers(self, value):
            return entries([numbers[value]])

    found = content_of(Facts(), ir.Node("", "Range", operands, name="range"))
    if listed is None:
        assert found == Ramp(start, (delta,))
    else:
        assert vector(found) == listed


def test_a_file_that_fixes_long_caches_is_refused(monkeypatch):
    monkeypatch.setattr(shapes_of_rows, "_MOST", 100)
    inspection = mla_opt.inspect(build(Block(batch=2, query_len=4, past_len=8)))
    (refusal,) = inspection.refusals
    assert refusal.code == "region_not_closed"
    assert "more than 100 numbers" in refusal.reason
    assert "free sizes" in refusal.remedy


@pytest.mark.parametrize("room", [10, 1 << 20])
def test_sessions_keep_the_memory_of_small_parts_only(monkeypatch, room):
    monkeypatch.setattr(parts, "_sessions", {})
    monkeypatch.setattr(parts, "_KEPT_ROOM", room)
    graph = graph_of(Block())
    rows = {value(graph.model, "present.0.keys"): np.ones((2, 1, 7, 12), np.float32)}
    graph.bind(2, 4, 3).run([value(graph.model, "made_0")], rows)
    ((_, keeps),) = parts._sessions
    assert keeps == (room > 10)
