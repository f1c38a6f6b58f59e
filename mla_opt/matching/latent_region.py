"""Telling a latent attention from any other, by where its keys and values come from.

    c_kv --- linear, head by head --+--> values of every head
                                    +--> keys of every head, but for ...
    k_pe --- as it is --------------+    ... the part that all heads share

Keys and values are walked back (:mod:`mla_opt.matching.region`) and cut where their rows are
narrowest (:mod:`mla_opt.matching.cut`). The attention is latent when everything that the values are
made of is in the keys, too, when those rows are narrower than what is made of them, and when the
query is not made of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from mla_opt.errors import Refusal
from mla_opt.graphs import operations as op
from mla_opt.graphs import sizes
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node, Value
from mla_opt.matching.axes import ApartError, Atom, Placement, Variables
from mla_opt.matching.core_axes import CoreAxes, ReadCore
from mla_opt.matching.cut import narrowest
from mla_opt.matching.query_source import query_source_width
from mla_opt.matching.readers import is_idle
from mla_opt.matching.region import Join, Region, new_tokens, walk
from mla_opt.sites import AttentionCore, LatentAttentionSite, PastConcat
from mla_opt.sites.core import CoreLayouts
from mla_opt.sites.layout import KEYS, ROWS, Layout, Part, Role, is_standard

_BY_DESIGN = "nothing, if the model means it: it is another kind of attention"

REMEDIES = {
    "unsupported_attention": "export the attention as separate operators",
    "several_shared_rows": "one latent row, and at most one rotary row beside it, for all heads",
    "cache_of_one_half": "cache both keys and values, or the latent rows",
    "cache_not_returned": "return the joined cache as an output",
    "cache_read_twice": "let the attention alone read the cache",
    "latent_not_narrower": _BY_DESIGN,
    "query_from_latent": _BY_DESIGN,
    "no_shared_projection": "a latent row that both keys and values are made of",
    "head_count": "export the model with a fixed number of heads",
    "rope_in_values": _BY_DESIGN,
    "sink_with_value_bias": "add the bias of the values to the bias of the output projection",
    "rope_mixed": "let every head hold the whole rotary row, in the same dims",
    "unknown_shape": "run shape inference on the model, or export it with shapes",
}
"""What would change a refusal, by code, where the place that refuses says nothing better."""


class NotLatentError(Exception):
    """Carries why an attention is not latent, or not provably so."""

    def __init__(
        self, code: str, reason: str, nodes: tuple[Node, ...] = (), remedy: str = ""
    ) -> None:
        super().__init__(reason)
        self.code, self.reason, self.nodes = code, reason, nodes
        self.remedy = remedy or REMEDIES.get(code, "")

    def refusal(self, graph: Graph, site: str) -> Refusal:
        """The refusal to report, with the nodes named."""
        labels = tuple(graph.label(node) for node in self.nodes)
        return Refusal(site, self.code, self.reason, labels, self.remedy)


@dataclass(frozen=True, slots=True)
class _Rows:
    """What keys and values are cut at, and the region above it."""

    region: Region
    of_values: tuple[Value, ...]
    of_keys: tuple[Value, ...]

    @property
    def shared(self) -> tuple[Value, ...]:
        """What both are made of: ``c_kv``."""
        return self.of_values

    @property
    def of_keys_only(self) -> tuple[Value, ...]:
        """What the keys have besides: ``k_pe``."""
        return tuple(value for value in self.of_keys if value not in self.of_values)


def latent_site(graph: Graph, read: ReadCore) -> LatentAttentionSite:
    """Read one attention as latent; whoever calls gives it a name.

    Raises:
        NotLatentError: it is not, or not in a form that can be proved.
    """
    core, axes = read.core, read.axes
    _check_core(core, axes)
    rows = _rows(graph, core, axes)
    _check_shared(graph, core, rows)
    roles = _Roles.of(graph, core, axes, rows)
    _check_narrower(graph, core, axes, rows)
    _check_query(graph, core, axes, rows)
    expanded = _expanded_cache(graph, core, roles, rows)
    layouts = CoreLayouts(*(roles.layout(each) for each in _placements(axes)))
    rows = _rewound(graph, rows, roles)
    bias = tuple(
        replace(term, layout=roles.layout(of_term)) for term, of_term in zip(core.bias, axes.bias)
    )
    _check_order(graph, core, rows)
    latent, rope = rows.shared[0], rows.of_keys_only[0] if rows.of_keys_only else None
    _check_layouts(core, layouts)
    return LatentAttentionSite(
        name="",
        core=replace(core, layouts=layouts, bias=bias),
        latent=latent,
        latent_layout=roles.layout(rows.region.axes[latent]),
        rope=rope,
        rope_layout=None if rope is None else roles.layout(rows.region.axes[rope]),
        projection=_projection(graph, rows, latent),
        expanded=expanded,
        inner=_inner(graph, core, rows),
        only_new_rows=expanded is None and _only_new_rows(axes, roles),
        family="expanded" if expanded else "none",
        layout_before="expanded" if expanded else "rows",
    )


def _check_fills(core: AttentionCore) -> None:
    """A query that may attend to nothing attends to all keys alike where the fill is a number."""
    finite = [term for term in core.bias if np.isfinite(term.fill)]
    if finite and (len(core.bias) > 1 or core.sink is not None):
        raise NotLatentError(
            "finite_fill",
            f"a mask fills scores with {finite[0].fill:g} and something else is added to them, so"
            " what a query that may attend to nothing gets cannot be kept",
            (core.first,),
            "fill with minus infinity, or add the masks before they are applied",
        )


def _placements(axes: CoreAxes) -> tuple[Placement, Placement, Placement, Placement]:
    return axes.query, axes.key, axes.value, axes.output


def _check_core(core: AttentionCore, axes: CoreAxes) -> None:
    _check_fills(core)
    if core.unsupported:
        raise NotLatentError(
            "unsupported_attention", f"the attention node: {core.unsupported}", core.nodes
        )
    if axes.apart:
        raise NotLatentError(
            axes.code,
            f"sequences, heads and tokens cannot be followed through the attention: {axes.apart}",
            (core.first, core.last) if axes.at is None else (axes.at,),
            "keep every token of the scores and probabilities in its place",
        )


# Rows


def _rows(graph: Graph, core: AttentionCore, axes: CoreAxes) -> _Rows:
    """Walk keys and values back, and cut them where they are narrowest."""
    variables = axes.variables
    variables.whole = set(variables.names(axes.keys))
    roots = {core.key: axes.key, core.value: axes.value}
    if core.key is core.value:
        roots = {core.key: axes.key}
    try:
        region = walk(graph, variables, roots, tokens=axes.keys)
    except ApartError as error:
        _check_caches(graph, core, axes)
        raise NotLatentError("tokens_apart", str(error), (core.first, core.last)) from error
    found = narrowest(roots, region.made_of, lambda value: _cost(variables, axes, region, value))
    if found is None:
        raise NotLatentError(
            "unknown_shape",
            "keys or values are made of something whose sizes, or whose tokens, are not known"
            f" ({_ends(region)})",
            (core.first, core.last),
            "run shape inference on the model, or export it with shapes",
        )
    cut = frozenset(found)
    of_values = _pieces(region, core.value, cut)
    return _Rows(region, of_values, _pieces(region, core.key, cut))


def _check_caches(graph: Graph, core: AttentionCore, axes: CoreAxes) -> None:
    """Keys and values whose rows are joined with those of the past at one of the two alone."""
    caches = [
        len(walk(graph, axes.variables, {value: placed}, tokens=axes.keys).joins)
        for value, placed in ((core.key, axes.key), (core.value, axes.value))
    ]
    if caches[0] != caches[1]:
        raise NotLatentError(
            "cache_of_one_half",
            "only one of keys and values is cached, or one of them twice",
            (core.first, core.last),
        )


def _width(variables: Variables, axes: CoreAxes, region: Region, value: Value) -> int | None:
    """Numbers a token of a value; ``None`` where it is no row for each token."""
    atoms = _atoms(variables, region.axes[value])
    tokens = {*variables.names(axes.keys), *variables.names(new_tokens(axes.keys))}
    outer = {name for name, size in variables.sizes.items() if not isinstance(size, int)}
    rest = [atom for atom in atoms if atom.name not in tokens and atom.name not in outer]
    if not any(atom.name in tokens for atom in atoms) and not _one_token(variables, axes):
        return None
    total = sizes.product(atom.size for atom in rest)
    return total if isinstance(total, int) else None


def _cost(variables: Variables, axes: CoreAxes, region: Region, value: Value) -> int | None:
    """What a cut pays for a value: its width, where it has one; heads count even without."""
    if _width(variables, axes, region, value) != 0:
        return _width(variables, axes, region, value)
    atoms = _atoms(variables, region.axes[value])
    return math.prod(max(atom.size, 1) for atom in atoms if isinstance(atom.size, int))


def _one_token(variables: Variables, axes: CoreAxes) -> bool:
    return any(variables.sizes.get(name, 1) == 1 for name in (axes.keys, new_tokens(axes.keys)))


def _atoms(variables: Variables, axes: Placement) -> list[Atom]:
    return [atom for axis in axes for atom in variables.current(axis)]


def _pieces(region: Region, root: Value, cut: frozenset[Value]) -> tuple[Value, ...]:
    """The values of the cut that a root is made of."""
    pending, seen, found = [root], set(), []
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in cut:
            found.append(value)
        else:
            pending.extend(reversed(region.made_of.get(value, ())))
    return tuple(found)


def _ends(region: Region) -> str:
    return "; ".join(leaf.why for leaf in list(region.leaves.values())[:3])


def _check_shared(graph: Graph, core: AttentionCore, rows: _Rows) -> None:
    """Everything that the values are made of is in the keys."""
    apart = [value for value in rows.of_values if value not in rows.of_keys]
    if not apart and rows.of_values:
        _check_one(rows)
        return
    of_keys = [value for value in rows.of_keys if value not in rows.of_values]
    for what, values in (("values", apart or [core.value]), ("keys", of_keys)):
        for value in values:
            _refuse_end(graph, rows, what, value)
    _check_common(graph, core, rows)
    raise NotLatentError(
        "separate_projections",
        f"keys and values are not made of one row: the values of {_named(apart)}, the keys of"
        f" {_named(rows.of_keys)}",
        _makers(graph, [*apart, *rows.of_keys]),
        "nothing, if the model projects keys and values from the hidden state",
    )


def _check_common(graph: Graph, core: AttentionCore, rows: _Rows) -> None:
    """Keys and values that are narrower than the row that they have in common."""
    common = [
        value
        for value in _below(rows.region, core.key)
        if value in _below(rows.region, core.value) and value in rows.region.leaves
    ]
    if common and not rows.region.leaves[common[0]].kind == "apart":
        raise NotLatentError(
            "latent_not_narrower",
            f"keys and values meet in {_named(common)}, which is not narrower than what is made of"
            " it: nothing would be saved",
            _makers(graph, common) or (core.first, core.last),
        )


def _below(region: Region, root: Value) -> dict[Value, None]:
    """Everything that a root is made of, nearest first."""
    found: dict[Value, None] = {}
    pending = [root]
    while pending:
        value = pending.pop(0)
        if value not in found:
            found[value] = None
            pending.extend(region.made_of.get(value, ()))
    return found


def _refuse_end(graph: Graph, rows: _Rows, what: str, value: Value) -> None:
    """Say why keys or values end where they do, where that is as wide as they are themselves."""
    end = _end(rows.region, value)
    leaf = rows.region.leaves.get(end)
    if leaf is None or not _is_of_heads(rows, end):
        return
    node = graph.producer(end)
    at = () if node is None else (node,)
    if node is None:
        raise NotLatentError(
            "no_shared_projection",
            f"the {what} are made of {end.name}, an input",
            _readers(graph, end),
        )
    if _is_product(graph, node):
        raise NotLatentError(
            "projection_not_constant",
            f"the {what} come from a matrix product with something computed, not stored",
            at,
            "store the projection weight in the model",
        )
    if _rounds(graph, node):
        raise NotLatentError(
            "activations_quantized",
            f"the {what} are made of quantized activations in a way that cannot be read without"
            f" their rounding: {graph.label(node)}",
            at,
            "quantize only the weights, or quantize after optimizing",
        )
    apart = leaf.kind == "apart"
    raise NotLatentError(
        "tokens_apart" if apart else "not_linear",
        f"the {what} are not a linear image of one row for each token: {leaf.why}",
        at,
        "nothing, if the model means it; else export it without this operator",
    )


def _readers(graph: Graph, value: Value) -> tuple[Node, ...]:
    return tuple(graph.consumers(value))


def _end(region: Region, value: Value) -> Value:
    """Where a value comes from, through whatever has one operand."""
    while len(parts := region.made_of.get(value, ())) == 1:
        (value,) = parts
    return value


def _rounds(graph: Graph, node: Node) -> bool:
    """Whether a node computes with quantized activations."""
    operation = graph.operation(node)
    return isinstance(operation, op.Opaque) and operation.rounds


def _is_product(graph: Graph, node: Node) -> bool:
    operation = graph.operation(node)
    return isinstance(operation, op.MatMul) or (
        isinstance(operation, op.Opaque) and operation.product
    )


def _is_of_heads(rows: _Rows, value: Value) -> bool:
    """Whether a leaf is of every head, so that nothing was saved by going back to it."""
    return any(
        atom.name is not None or atom.of
        for axis in rows.region.axes[value]
        for atom in axis
        if isinstance(atom.size, int)
    )


def _check_one(rows: _Rows) -> None:
    if len(rows.shared) > 1 or len(rows.of_keys_only) > 1:
        raise NotLatentError(
            "several_shared_rows",
            f"the rows are of {len(rows.shared)} parts that keys and values share, and"
            f" {len(rows.of_keys_only)} of the keys alone; one each is supported",
        )


def _named(values: list[Value] | tuple[Value, ...]) -> str:
    return ", ".join(value.name or "?" for value in values) or "nothing"


def _makers(graph: Graph, values: list[Value]) -> tuple[Node, ...]:
    nodes = (graph.producer(value) for value in values)
    return tuple(dict.fromkeys(node for node in nodes if node is not None))


def _rewound(graph: Graph, rows: _Rows, roles: _Roles) -> _Rows:
    """The rows before they were reshaped and permuted for what reads them."""
    back = {value: _before_moves(graph, rows.region, roles, value) for value in rows.of_keys}
    return replace(
        rows,
        of_values=tuple(back[value] for value in rows.of_values),
        of_keys=tuple(back[value] for value in rows.of_keys),
    )


def _before_moves(graph: Graph, region: Region, roles: _Roles, value: Value) -> Value:
    """The cache that the rows come from, else the nearest ``[B, 1, T, X]`` or ``[B, T, X]``."""
    chain = [value]
    joined = {join.joined for join in region.joins}
    while chain[-1] not in joined and len(region.made_of.get(chain[-1], ())) == 1:
        node = graph.producer(chain[-1])
        operation = None if node is None else graph.operation(node)
        if not isinstance(operation, op.Layout) or not _keeps_order(graph, operation, chain[-1]):
            break
        chain.append(region.made_of[chain[-1]][0])
    if chain[-1] in joined:
        return chain[-1]
    for form in (KEYS, ROWS):
        for each in chain:
            if is_standard(roles.layout(region.axes[each]), form):
                return each
    return value


def _keeps_order(graph: Graph, operation: op.Layout, value: Value) -> bool:
    """Whether the elements of a row stay next to each other, all of them and in their order."""
    if isinstance(operation.move, op.Along):
        before, after = graph.sizes(operation.data[0]), graph.sizes(value)
        return before is not None and before == after and all(f for _, f in operation.move.axes)
    return isinstance(operation.move, op.Permuted | op.Reshaped)


# Roles


@dataclass(frozen=True, slots=True)
class _Roles:
    """What each variable is: a sequence, a head, a token of the query or of the keys."""

    variables: Variables
    known: dict[str, tuple[Role, int]]

    @classmethod
    def of(cls, graph: Graph, core: AttentionCore, axes: CoreAxes, rows: _Rows) -> _Roles:
        """Sequences are what rows differ by, heads what they do not; the rest are tokens."""
        variables = axes.variables
        known: dict[str, tuple[Role, int]] = {}
        for name in (axes.keys, new_tokens(axes.keys)):
            known.update(dict.fromkeys(variables.names(name), ("key", 0)))
        outer = [
            atom.name
            for atom in _atoms(variables, axes.query)
            if atom.name is not None and atom.name not in known
        ]
        kept = [
            _pure(variables, rows.region.axes[row]) for row in (*rows.shared, *rows.of_keys_only)
        ]
        in_all, in_any = set.intersection(*kept), set.union(*kept)
        in_keys = _pure(variables, axes.key) | _pure(variables, axes.value)
        partly = [name for name in outer if name in in_any and name not in in_all]
        if partly:
            raise _not_shared(graph, core, rows, partly)
        only_query = [name for name in outer if name not in in_keys]
        tokens = _query_tokens(variables, only_query)
        heads = [name for name in outer if name not in in_all and name not in tokens]
        known.update({name: ("batch", place) for place, name in enumerate(outer) if name in in_all})
        known.update({name: ("query", place) for place, name in enumerate(tokens)})
        known.update({name: ("head", place) for place, name in enumerate(heads)})
        return cls(variables, known)

    def layout(self, axes: Placement) -> Layout:
        """The roles of the axes of a value."""
        return tuple(
            tuple(self._part(atom) for atom in self.variables.current(axis)) for axis in axes
        )

    def _part(self, atom: Atom) -> Part:
        size = atom.size if isinstance(atom.size, int) else None
        role, number = self.known.get(atom.name or "", ("width", 0))
        return Part(role, size, number)


def _not_shared(
    graph: Graph, core: AttentionCore, rows: _Rows, partly: list[str]
) -> NotLatentError:
    """Rows of which some differ from head to head, and others do not."""
    for value in rows.of_keys:
        end = _end(rows.region, value)
        leaf = rows.region.leaves.get(end)
        if leaf is not None and leaf.kind == "apart" and set(partly) & _names(rows, end):
            return NotLatentError("tokens_apart", f"in the keys, {leaf.why}", _makers(graph, [end]))
    return NotLatentError(
        "rope_per_head",
        f"{_named(rows.of_keys_only or rows.shared)} differ from head to head, so they are no row"
        " that all heads share",
        _makers(graph, list(rows.of_keys_only)) or (core.first,),
        "nothing, if every head has a rotary part of its own",
    )


def _names(rows: _Rows, value: Value) -> set[str]:
    return {name for axis in rows.region.axes[value] for atom in axis for name in atom.variables}


def _pure(variables: Variables, axes: Placement) -> set[str]:
    return {atom.name for atom in _atoms(variables, axes) if atom.name is not None}


def _query_tokens(variables: Variables, names: list[str]) -> list[str]:
    """Which of what only the query has are tokens: those of varying number, else the last."""
    varying = [name for name in names if not isinstance(variables.sizes[name], int)]
    return varying or names[-1:]


# Checks


def _check_narrower(graph: Graph, core: AttentionCore, axes: CoreAxes, rows: _Rows) -> None:
    """The rows save something, and are no hidden state, as that of an encoder is."""

    def width(values: tuple[Value, ...]) -> int:
        known = (_width(axes.variables, axes, rows.region, value) for value in values)
        return sum(size or 0 for size in known)

    source = query_source_width(graph, core.query)
    alike = not rows.of_keys_only and _projection(graph, rows, rows.shared[0]) is None
    if alike and core.value not in rows.of_values and source == width(rows.shared):
        raise NotLatentError(
            "latent_not_narrower",
            f"keys and values have a projection each, of a row that is {source} wide, as what the"
            " query is projected from is: it is a hidden state",
            _makers(graph, list(rows.shared)),
        )
    row = width((*rows.shared, *rows.of_keys_only))
    made = width((core.key, core.value))
    if row >= made and (core.key not in rows.of_keys or core.value not in rows.of_values):
        raise NotLatentError(
            "latent_not_narrower",
            f"the rows are {row} wide and make {made} numbers: nothing would be saved",
            _makers(graph, list(rows.shared)),
        )


def _check_query(graph: Graph, core: AttentionCore, axes: CoreAxes, rows: _Rows) -> None:
    """The query is no linear image of the row: then that row would be the hidden state."""
    try:
        region = walk(graph, axes.variables, {core.query: axes.query}, tokens="none")
    except ApartError:
        return
    between = {*rows.region.axes} - _under(graph, rows)
    same = [value for value in region.axes if value in between]
    if same:
        raise NotLatentError(
            "query_from_latent",
            f"the query is a linear image of {same[0].name}, as keys and values are: those rows are"
            " the hidden state, not a latent",
            _makers(graph, same[:2]),
        )


def _check_order(graph: Graph, core: AttentionCore, rows: _Rows) -> None:
    """Neither query nor masks are computed from the rows, which the operator returns."""
    given = (core.query, *(term.value for term in core.bias))
    reached = _computed_from(graph, given, set(rows.of_keys))
    if reached is not None:
        raise NotLatentError(
            "query_from_latent",
            f"the query, or a mask, is computed from {reached.name}, as keys and values are",
            _makers(graph, [reached]),
        )


def _computed_from(graph: Graph, given: tuple[Value, ...], rows: set[Value]) -> Value | None:
    """The row that the data of a value depends on; what only reads its shape does not.

    Latent attentions before this one need their rows no longer: the operator stands for them.
    """
    absorbed = {site.core.output: site.core.query for site in graph.sites}
    nodes = [node for node in map(graph.producer, rows) if node is not None]
    limit = min(map(graph.position, nodes), default=0)
    pending, seen = list(given), set()
    while pending:
        value = absorbed.get(pending[-1], pending[-1])
        pending.pop()
        if value in rows:
            return value
        node = graph.producer(value)
        if node is None or node in seen or graph.position(node) < limit:
            continue
        seen.add(node)
        if not graph.is_shape_reader(node):
            pending.extend(graph.reads(node))
    return None


def _under(graph: Graph, rows: _Rows) -> set[Value]:
    """What the rows themselves are computed from, beyond where they were only moved and cast."""
    under: set[Value] = set()
    for row in rows.of_keys:
        value, parts = row, rows.region.made_of.get(row, ())
        while len(parts) == 1 and _is_moved(graph, value):
            (value,) = parts
            parts = rows.region.made_of.get(value, ())
        under.update(below for part in parts for below in _below(rows.region, part))
    return under


def _is_moved(graph: Graph, value: Value) -> bool:
    node = graph.producer(value)
    operation = None if node is None else graph.operation(node)
    return isinstance(operation, op.Cast) or (
        isinstance(operation, op.Layout) and _keeps_order(graph, operation, value)
    )


def _check_layouts(core: AttentionCore, layouts: CoreLayouts) -> None:
    heads = {part.size for axis in layouts.query for part in axis if part.role == "head"}
    if None in heads:
        raise NotLatentError(
            "head_count", "how many heads it has is not a number", (core.first, core.last)
        )


def _only_new_rows(axes: CoreAxes, roles: _Roles) -> bool:
    """Whether there are as many keys as queries in every call."""
    variables = axes.variables
    new = [name for name, (role, _) in roles.known.items() if role == "query"]
    of_query = sizes.product(variables.sizes[name] for name in new)
    return sizes.same(of_query, variables.sizes.get(axes.keys, 1))


def _projection(graph: Graph, rows: _Rows, latent: Value) -> Node | None:
    """The one linear layer that everything made of ``c_kv`` comes through, if there is one."""
    readers = [
        value
        for value, parts in rows.region.made_of.items()
        if latent in parts and value in rows.region.axes
    ]
    while len(readers) == 1:
        (value,) = readers
        node = graph.producer(value)
        assert node is not None
        if isinstance(graph.operation(node), op.Linear):
            return node
        readers = [each for each, parts in rows.region.made_of.items() if value in parts]
    return None


def _expanded_cache(
    graph: Graph, core: AttentionCore, roles: _Roles, rows: _Rows
) -> tuple[PastConcat, PastConcat] | None:
    cut = frozenset((*rows.shared, *rows.of_keys_only))
    keys, values = (_joins_above(rows.region, root, cut) for root in (core.key, core.value))
    if not keys and not values:
        return None
    if len(keys) != 1 or len(values) != 1:
        raise NotLatentError(
            "cache_of_one_half",
            "only one of keys and values is cached, or one of them twice",
            (core.first, core.last),
        )
    pair = tuple(
        PastConcat(
            each.past,
            each.new,
            each.joined,
            each.axis,
            roles.layout(rows.region.axes[each.joined]),
        )
        for each in (*keys, *values)
    )
    if not all(graph.is_output(part.joined) for part in pair):
        raise NotLatentError(
            "cache_not_returned",
            "the joined cache is not an output of the graph",
            (core.first, core.last),
        )
    for part in pair:
        readers = [n for n in graph.consumers(part.past) if not is_idle(graph, n)]
        if len(readers) != 1:
            raise NotLatentError(
                "cache_read_twice",
                f"more than the attention reads the cache {part.past.name!r}, whose rows will be"
                " others",
                tuple(readers),
            )
    return pair[0], pair[1]


def _inner(graph: Graph, core: AttentionCore, rows: _Rows) -> tuple[Value, ...]:
    """What is made of the rows on the way to the output, as far as it has a token's numbers."""
    found: dict[Value, None] = {}
    pending = [core.key, core.value]
    while pending:
        value = pending.pop()
        if value not in found and value not in rows.of_keys:
            found[value] = None
            pending.extend(rows.region.made_of.get(value, ()))
    made = (value for node in core.nodes for value in graph.results(node))
    found.update((value, None) for value in made if value is not core.output)
    return tuple(found)


def _joins_above(region: Region, root: Value, cut: frozenset[Value]) -> list[Join]:
    """The caches between a root and where it is cut."""
    joins = {join.joined: join for join in region.joins}
    pending, seen, found = [root], set(), []
    while pending:
        value = pending.pop()
        if value in seen or value in cut:
            continue
        seen.add(value)
        if value in joins:
            found.append(joins[value])
        pending.extend(region.made_of.get(value, ()))
    return found
