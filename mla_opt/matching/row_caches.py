"""Where the past comes in: caches of rows, of expanded keys and values, and none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from mla_opt.graphs import operations as op
from mla_opt.graphs import sizes
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node, Value
from mla_opt.matching.axes import Placement
from mla_opt.matching.cache_ends import other_readers, returned
from mla_opt.matching.core_axes import CoreAxes
from mla_opt.matching.not_latent import NotLatentError
from mla_opt.matching.places import places
from mla_opt.matching.region import Join, Region
from mla_opt.matching.roles import Roles
from mla_opt.matching.shared_rows import SharedRows, keeps_order
from mla_opt.sites import AttentionCore, CachedTensor, LatentAttentionSite, Positions
from mla_opt.sites.layout import KEYS, ROWS, Layout, is_standard

LayoutOf = Callable[[Placement], Layout]


def rewound(graph: Graph, rows: SharedRows, roles: Roles) -> SharedRows:
    """The rows before they were reshaped and permuted for what reads them."""
    back = {value: _before_moves(graph, rows.region, roles, value) for value in rows.of_keys}
    return replace(
        rows,
        of_values=tuple(back[value] for value in rows.of_values),
        of_keys=tuple(back[value] for value in rows.of_keys),
    )


def _before_moves(graph: Graph, region: Region, roles: Roles, value: Value) -> Value:
    """The cache that the rows come from, else the nearest ``[B, 1, T, X]`` or ``[B, T, X]``."""
    chain = [value]
    joined = {join.joined for join in region.joins}
    while chain[-1] not in joined and len(region.made_of.get(chain[-1], ())) == 1:
        node = graph.producer(chain[-1])
        operation = None if node is None else graph.operation(node)
        if not isinstance(operation, op.Layout) or not keeps_order(graph, operation, chain[-1]):
            break
        chain.append(region.made_of[chain[-1]][0])
    if chain[-1] in joined:
        return chain[-1]
    for form in (KEYS, ROWS):
        for each in chain:
            if is_standard(roles.of_rows(region.axes[each]), form):
                return each
    return value


def only_new_rows(axes: CoreAxes, roles: Roles) -> bool:
    """Whether there are as many keys as queries in every call."""
    variables = axes.variables
    new = [name for name, (role, _) in roles.known.items() if role == "query"]
    of_query = sizes.product(variables.sizes[name] for name in new)
    return sizes.same(of_query, variables.sizes.get(axes.keys, 1))


def expanded_cache(
    graph: Graph, core: AttentionCore, roles: Roles, rows: SharedRows
) -> tuple[CachedTensor, CachedTensor] | None:
    """The caches of expanded keys and values that the attention reads, if there are such."""
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
    if keys[0].past is values[0].past:
        raise NotLatentError(
            "cache_axes",
            f"the cache {keys[0].past.name!r} holds keys and values of every head side by side",
            (core.first, core.last),
            "cache keys and values in a tensor each",
        )
    pair = [cached_tensor(graph, roles.layout, rows.region, join) for join in (*keys, *values)]
    check_written_alike(graph, pair, (core.first, core.last))
    for part in pair:
        _check_may_change(graph, part, (core.first, core.last))
        if part.others is not None:
            raise NotLatentError(
                "cache_read_twice",
                f"more than the attention reads the cache {part.past.name!r}, whose rows will be"
                " others",
                part.others,
            )
    return pair[0], pair[1]


def check_same_rows(sites: Iterable[LatentAttentionSite], site: LatentAttentionSite) -> None:
    """Attentions that read one cache of expanded rows make those of the same latent rows.

    Raises:
        NotLatentError: one before this makes them of others.
    """
    pasts, rows = _pasts(site), _rows(site)
    for other in sites:
        theirs = _pasts(other)
        alike = pasts[:1] == theirs[:1] and rows == _rows(other)
        if set(pasts) & set(theirs) and not alike:
            raise NotLatentError(
                "cache_read_twice",
                f"{other.name} reads a cache of this one, too, and makes its keys and values of"
                " other rows",
                (site.core.first, site.core.last),
            )


def _pasts(site: LatentAttentionSite) -> tuple[Value, ...]:
    """The caches of expanded rows, keys first."""
    return tuple(part.past for part in site.expanded or ())


def _rows(site: LatentAttentionSite) -> tuple[Value | None, ...]:
    return (*(row.value for row in site.latents), site.rope)


def _check_may_change(graph: Graph, part: CachedTensor, at: tuple[Node, ...]) -> None:
    why = graph.why_it_stays(part.past)
    if why:
        raise NotLatentError(
            "cache_in_place",
            f"the cache {part.past.name!r} cannot become one of latent rows: {why}",
            at,
            "export the program with torch.export, and with caches that are zeros",
        )


def cached_tensor(graph: Graph, layout_of: LayoutOf, region: Region, join: Join) -> CachedTensor:
    """A cache and both its ends; ``layout_of`` tells the roles of axes.

    Raises:
        NotLatentError: it is not returned whole, or its axes are more than one thing at a time.
    """
    _check_first(layout_of, join)
    layout, of_past = layout_of(region.axes[join.joined]), layout_of(join.past_axes)
    maker = graph.producer(join.joined)
    at = () if maker is None else (maker,)
    if not (_has_axes(layout) and _has_axes(of_past)):
        raise NotLatentError(
            "cache_axes",
            f"the cache {join.past.name!r} has sequences or tokens in one axis with something else",
            at,
        )
    output = returned(graph, join, layout)
    if output is None or not _has_axes(output[1]):
        raise NotLatentError(
            "cache_not_returned",
            f"the rows of {join.past.name!r} and new ones are joined, but no output of the graph",
            at,
        )
    others = other_readers(graph, join)
    of_new = layout_of(region.axes[join.new])
    positions = None if join.put is None else _positions(graph, join.put, join, of_new, at)
    return CachedTensor(
        join.past,
        join.moved[-1],
        join.new,
        join.joined,
        join.written,
        output[0],
        layout,
        of_new,
        of_past,
        output[1],
        others,
        positions=positions,
        order=join.order,
    )


def _positions(
    graph: Graph, put: op.Put, join: Join, of_new: Layout, at: tuple[Node, ...]
) -> Positions:
    """Where new rows are written: the same places for all, or places of each sequence."""
    index, axes = places(graph, put.index)
    along = [None if place is None else put.along[place] for place in axes]
    layout = tuple(() if place is None else of_new[place] for place in along)
    if any(part.role not in ("batch", "key") for axis in layout for part in axis):
        raise NotLatentError(
            "cache_axes",
            f"heads, or numbers of a row, of the cache {join.past.name!r} have places of their own",
            at,
            "write whole rows, those of all heads to one place",
        )
    runs = (draft.run for draft in graph.drafts if draft.run is not None)
    known = next((run for run in runs if run.places is index), None)
    first = join.first is not None
    return Positions(index, layout, put.run, join.count, first, join.room, known)


def _check_first(layout_of: LayoutOf, join: Join) -> None:
    """A buffer may have more sequences than a call, not more of anything else."""
    if join.first is None:
        return
    (parts,) = layout_of((join.first[1],))
    if [part.role for part in parts] != ["batch"]:
        raise NotLatentError(
            "cache_axes",
            f"only part of the cache {join.past.name!r} is written, and not of its sequences",
        )


def check_written_alike(
    graph: Graph, tensors: Sequence[CachedTensor], at: tuple[Node, ...] = ()
) -> None:
    """Rows of one token have one place in all tensors that hold a part of them.

    Raises:
        NotLatentError: that cannot be told.
    """
    first, *others = (tensor.positions for tensor in tensors)
    if not all(_alike(graph, first, other) for other in others):
        raise NotLatentError(
            "cache_positions",
            "keys and values, or the two parts of the rows, are not written to the same places of"
            " their caches, as far as can be told",
            at,
        )


def _alike(graph: Graph, one: Positions | None, other: Positions | None) -> bool:
    if one is None or other is None:
        return one is other
    forms = [(each.layout, each.run, each.first) for each in (one, other)]
    if forms[0] != forms[1] or not _alike_room(graph, one, other):
        return False
    if one.count is None or other.count is None:
        return one.count is other.count and graph.alike(one.index, other.index)
    return graph.alike(one.count, other.count) and graph.alike(one.index, other.index)


def _alike_room(graph: Graph, one: Positions, other: Positions) -> bool:
    if one.room is None or other.room is None:
        return one.room is other.room
    return one.room[1] == other.room[1] and graph.alike(one.room[0], other.room[0])


def _has_axes(layout: Layout) -> bool:
    """Whether tokens have an axis of their own, and so have sequences, if there are several."""
    alone = [axis[0].role for axis in layout if len(axis) == 1]
    shared = {part.role for axis in layout if len(axis) > 1 for part in axis}
    return alone.count("key") == 1 and alone.count("batch") <= 1 and not shared & {"key", "batch"}


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
