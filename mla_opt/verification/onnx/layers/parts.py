"""A region of two models as two models of their own, to be run like any others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.graphs.interface.interface import ModelInterface
from mla_opt.graphs.onnx.conditionals import dim
from mla_opt.graphs.sizes import Expression
from mla_opt.verification import interface_map, site_records
from mla_opt.verification.alignment import joined_name
from mla_opt.verification.interface_map import InterfaceMap
from mla_opt.verification.onnx.layers.correspondence import Correspondence, Kind, Side
from mla_opt.verification.onnx.layers.regions import Region
from mla_opt.verification.site_records import SiteRecord, read_sites

BEGINNING = "hidden"
"""What the data is called that a part begins with, and a number."""


@dataclass(frozen=True, slots=True)
class Part:
    """One region as a model each.

    ``label`` says what it is, ``made_up`` which outputs are none of the region.
    """

    label: str
    before: ir.Model
    after: ir.Model
    made_up: frozenset[str]


def part(found: Correspondence, changes: InterfaceMap, region: Region) -> Part:
    """Cut a region out of both models."""
    names = _names(found, region)
    states = _states_read(found, changes, region)
    before, after = (_cut(found, side, region, names) for side in found.sides)
    _with_same_inputs(before, after, changes, states)
    for side, model, own in zip(found.sides, (before, after), _by_side(states, changes)):
        _let_grow(side, model, own)
        _put_first(model.graph, own)
    _with_tokens(found, before, after)
    kept = tuple(each for each in changes.states if set(each.original.inputs) & states)
    buffers = any(each.layout == "static" for each in kept)
    told = replace(changes, states=kept, past_len_input=changes.past_len_input if buffers else None)
    after.metadata_props[interface_map.METADATA_KEY] = told.to_json()
    called = {end.name: names[found.kinds[found.after, end]] for end in region.ends[found.after]}
    for site in read_sites(found.after.model):
        if site.query in called:
            _make(after.graph, site.query, called[site.query])
    sites = _sites(found.after.model, after)
    after.metadata_props[site_records.METADATA_KEY] = site_records.sites_to_json(sites)
    label = ", ".join(site.name for site in sites) or region.names[0]
    return Part(label, before, after, _made_up(changes, region, before))


def _made_up(changes: InterfaceMap, region: Region, before: ir.Model) -> frozenset[str]:
    """Outputs that a part has beside those of its region, as reports name them."""
    own = {*region.names, *(name for each in region.states for name in each.original.outputs)}
    joined = (joined_name(each) for each in changes.states if each not in region.states)
    others = (value.name or "" for value in before.graph.outputs)
    return frozenset((*joined, *(name for name in others if name not in own)))


def _make(graph: ir.Graph, name: str, given: str) -> None:
    """Let a node make the query of a site that is given, so that it can be broken."""
    source = next(value for value in graph.inputs if value.name == given)
    readers = tuple(source.uses())
    node = ir.node("Identity", [source])
    (made,) = node.outputs
    made.name, made.shape, made.type = name, source.shape, source.type
    for reader, place in readers:
        reader.replace_input_with(place, made)
    graph.insert_before(graph[0], node)


def _sites(whole: ir.Model, cut: ir.Model) -> tuple[SiteRecord, ...]:
    """Those whose query is made in a part."""
    made = {value.name for node in cut.graph.all_nodes() for value in node.outputs}
    made.update(value.name for value in cut.graph.inputs)
    return tuple(site for site in read_sites(whole) if site.query in made)


def _names(found: Correspondence, region: Region) -> dict[Kind, str]:
    """What data is called at which a region begins, the same in both models."""
    names: dict[Kind, str] = {}
    for side in found.sides:
        for value in region.ends[side]:
            names.setdefault(found.kinds[side, value], f"{BEGINNING}.{len(names)}")
    return names


def _states_read(found: Correspondence, changes: InterfaceMap, region: Region) -> set[str]:
    """Inputs of the original that are states which either side reads, for their size at least."""
    mapped = {
        name: each.original.inputs
        for each in changes.states
        for name in (*each.original.inputs, *each.optimized.inputs)
    }
    own = {state.input.name for state in found.before.interface.states}
    read = {value.name or "" for side in found.sides for value in region.inputs[side]}
    read.update(name for each in region.states for name in each.original.inputs)
    return {name for each in read for name in mapped.get(each, (each,)) if name in own}


def _by_side(states: set[str], changes: InterfaceMap) -> tuple[set[str], set[str]]:
    """The same states as each model calls them."""
    mapped = [each for each in changes.states if set(each.original.inputs) & states]
    gone = {name for each in mapped for name in each.original.inputs}
    return states, (states - gone) | {name for each in mapped for name in each.optimized.inputs}


def _cut(found: Correspondence, side: Side, region: Region, names: dict[Kind, str]) -> ir.Model:
    ends, own = list(region.ends[side]), list(region.inputs[side])
    place = 0 if side is found.before else 1
    roots = [*region.names]
    roots += [n for s in region.states for n in (s.original, s.optimized)[place].outputs]
    outputs = [side.values[name] for name in dict.fromkeys(roots)]
    assert not set(ends).intersection(outputs), "what is to be shown would be given"
    graph = ir.convenience.extract(side.model.graph, [*ends, *own], outputs)
    for value, copy in zip(ends, tuple(graph.inputs)):
        copy.name = names[found.kinds[side, value]]
        copy.shape = _declared(found.shape(side, value))
        _set_type(copy, found.element_type(side, value))
    for value, copy in zip(outputs, graph.outputs):
        copy.name, copy.shape = value.name, copy.shape or _declared(found.shape(side, value))
        _set_type(copy, found.element_type(side, value))
    functions = [each.clone() for each in side.model.functions.values()]
    return ir.Model(graph, ir_version=side.model.ir_version, functions=functions)


def _set_type(value: ir.Value, kind: ir.DataType | None) -> None:
    if kind is not None:
        value.dtype = kind


def _declared(shape: Sequence[Expression] | None) -> ir.Shape | None:
    return None if shape is None else ir.Shape([dim(size) for size in shape])


def _with_same_inputs(
    before: ir.Model, after: ir.Model, changes: InterfaceMap, states: set[str]
) -> None:
    """Let both have every input that is no state, used or not."""
    apart = {changes.past_len_input, *states, *_by_side(states, changes)[1]}
    for one, other in ((before, after), (after, before)):
        known = {value.name for value in other.graph.inputs}
        other.graph.inputs.extend(
            ir.Value(name=value.name, shape=value.shape, type=value.type)
            for value in tuple(one.graph.inputs)
            if value.name not in known and value.name not in apart
        )


def _with_tokens(found: Correspondence, before: ir.Model, after: ir.Model) -> None:
    """Give both the tokens, where nothing else says which axes count new ones.

    Without such an axis an input is a factor, and those are fed with 1.
    """
    tokens = found.before.interface.tokens
    if tokens is None or ModelInterface.of(before).tokens is not None:
        return
    for model in (before, after):
        if all(value.name != tokens.name for value in model.graph.inputs):
            _copy_of(found.before.values[tokens.name], model.graph)


def _let_grow(side: Side, model: ir.Model, names: set[str]) -> None:
    """Give a part the states of which it only reads the size: they grow by rows of zeros."""
    graph = model.graph
    given = {value.name: value for value in graph.inputs}
    returned = {value.name for value in graph.outputs}
    made = {value.name: value for node in graph for value in node.outputs}
    for state in side.interface.states:
        if state.input.name not in names or state.output.name in returned:
            continue
        if state.output.name in made:
            graph.outputs.append(made[state.output.name])
            continue
        past = given.get(state.input.name) or _copy_of(side.values[state.input.name], graph)
        tape = ir.tape.Tape(graph)
        output = _copy_of(side.values[state.output.name])
        if state.kind == "growing" and state.growth_axis is not None:
            zeros = _zeros(tape, side, graph, past, state.growth_axis)
            tape.op("Concat", [past, zeros], {"axis": state.growth_axis}, output=output)
        else:
            tape.op("Identity", [past], output=output)
        graph.outputs.append(output)


def _put_first(graph: ir.Graph, names: set[str]) -> None:
    """Order the inputs, states first: what is joined with them is none."""
    graph.inputs[:] = sorted(graph.inputs, key=lambda value: value.name not in names)


def _copy_of(value: ir.Value, graph: ir.Graph | None = None) -> ir.Value:
    copy = ir.Value(name=value.name, shape=value.shape, type=value.type)
    if graph is not None:
        graph.inputs.append(copy)
    return copy


def _zeros(tape: ir.tape.Tape, side: Side, graph: ir.Graph, past: ir.Value, axis: int) -> ir.Value:
    """Zeros like the rows that a call adds to a state."""
    tokens, place = _new_tokens(side, graph)
    rank = past.shape.rank() if past.shape is not None else axis + 1

    def sizes(value: ir.Value, places: Sequence[int]) -> ir.Value:
        indices = tape.op("Constant", [], {"value_ints": list(places)})
        return tape.op("Gather", [tape.op("Shape", [value]), indices])

    parts = [sizes(tokens, [place])]
    if axis:
        parts.insert(0, sizes(past, range(axis)))
    if axis + 1 < rank:
        parts.append(sizes(past, range(axis + 1, rank)))
    zero = tape.op("Constant", [], {"value_float": 0.0})
    zeros = tape.op("Expand", [zero, tape.op("Concat", parts, {"axis": 0})])
    # ONNX Runtime expands few types
    return tape.op("Cast", [zeros], {"to": past.dtype or ir.DataType.FLOAT})


def _new_tokens(side: Side, graph: ir.Graph) -> tuple[ir.Value, int]:
    """An input that has an axis for the new tokens, and which that is."""
    tokens = side.interface.tokens
    axis = None if tokens is None else tokens.axis_of("query_len")
    assert tokens is not None and axis is not None
    symbol = str(tokens.sizes[axis])
    for value in graph.inputs:
        for place, size in enumerate(value.shape or ()):
            if str(size) == symbol:
                return value, place
    raise InputError(f"no part of the models counts the new tokens ({symbol})")
