"""The rows that keys and values are cut at, and how wide they are.

Keys and values are walked back (:mod:`mla_opt.matching.region`) and cut where their rows are
narrowest (:mod:`mla_opt.matching.cut`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mla_opt.graphs import operations as op
from mla_opt.graphs import sizes
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node, Value
from mla_opt.matching.axes import ApartError, Atom, Placement, Variables
from mla_opt.matching.core_axes import CoreAxes
from mla_opt.matching.cut import narrowest
from mla_opt.matching.not_latent import NotLatentError
from mla_opt.matching.region import Region, new_tokens, walk
from mla_opt.sites import AttentionCore


@dataclass(frozen=True, slots=True)
class SharedRows:
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
        """What the keys have besides."""
        return tuple(value for value in self.of_keys if value not in self.of_values)

    @property
    def rope(self) -> Value | None:
        """``k_pe``: the one row that the keys have besides."""
        return self.of_keys_only[0] if len(self.of_keys_only) == 1 else None

    @property
    def latents(self) -> tuple[Value, ...]:
        """The rows that are ``c_kv`` side by side: with those of the keys, if they are several."""
        return self.shared if len(self.of_keys_only) <= 1 else (*self.shared, *self.of_keys_only)


def shared_rows(graph: Graph, core: AttentionCore, axes: CoreAxes) -> SharedRows:
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
    return SharedRows(region, of_values, _pieces(region, core.key, cut))


def _check_caches(graph: Graph, core: AttentionCore, axes: CoreAxes) -> None:
    """Keys and values whose rows are joined with those of the past at one of the two alone."""
    try:
        caches = [
            len(walk(graph, axes.variables, {value: placed}, tokens=axes.keys).joins)
            for value, placed in ((core.key, axes.key), (core.value, axes.value))
        ]
    except ApartError:  # one of them alone cannot be followed either
        return
    if caches[0] != caches[1]:
        raise NotLatentError(
            "cache_of_one_half",
            "only one of keys and values is cached, or one of them twice",
            (core.first, core.last),
        )


def row_width(variables: Variables, axes: CoreAxes, region: Region, value: Value) -> int | None:
    """Numbers a token of a value; ``None`` where it is no row for each token."""
    atoms = atoms_of(variables, region.axes[value])
    tokens = {*variables.names(axes.keys), *variables.names(new_tokens(axes.keys))}
    outer = {name for name, size in variables.sizes.items() if not isinstance(size, int)}
    rest = [atom for atom in atoms if atom.name not in tokens and atom.name not in outer]
    if not any(atom.name in tokens for atom in atoms) and not _one_token(variables, axes):
        return None
    total = sizes.product(atom.size for atom in rest)
    return total if isinstance(total, int) else None


def _cost(variables: Variables, axes: CoreAxes, region: Region, value: Value) -> int | None:
    """What a cut pays for a value: its width, where it has one; heads count even without.

    Rows of which sequences and tokens are one axis are not cut: its size does not tell how many
    each are. Those that they are made of, or what they are made into, are.
    """
    if is_flat(variables, region.axes[value]):
        return None
    return _width_cost(variables, axes, region, value)


def _width_cost(variables: Variables, axes: CoreAxes, region: Region, value: Value) -> int | None:
    if row_width(variables, axes, region, value) != 0:
        return row_width(variables, axes, region, value)
    atoms = atoms_of(variables, region.axes[value])
    return math.prod(max(atom.size, 1) for atom in atoms if isinstance(atom.size, int))


def flat_rows(core: AttentionCore, axes: CoreAxes, rows: SharedRows) -> tuple[Value, ...]:
    """Narrower rows than those that were cut at, whose sequences and tokens are one axis."""
    variables, region = axes.variables, rows.region

    def cost(value: Value) -> int | None:
        return _width_cost(variables, axes, region, value)

    found = narrowest((core.key, core.value), region.made_of, cost) or ()
    own = sum(cost(value) or 0 for value in {*rows.of_keys, *rows.of_values})
    if sum(cost(value) or 0 for value in found) >= own:
        return ()
    return tuple(value for value in found if is_flat(variables, region.axes[value]))


def is_flat(variables: Variables, placed: Placement) -> bool:
    """Whether two sizes that vary are in one axis."""
    varying = (
        sum(not isinstance(atom.size, int) for atom in variables.current(axis)) for axis in placed
    )
    return any(count > 1 for count in varying)


def _one_token(variables: Variables, axes: CoreAxes) -> bool:
    return any(variables.sizes.get(name, 1) == 1 for name in (axes.keys, new_tokens(axes.keys)))


def atoms_of(variables: Variables, axes: Placement) -> list[Atom]:
    """The atoms of all axes of a value, in order."""
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


def all_below(region: Region, root: Value) -> dict[Value, None]:
    """Everything that a root is made of, nearest first."""
    found: dict[Value, None] = {}
    pending = [root]
    while pending:
        value = pending.pop(0)
        if value not in found:
            found[value] = None
            pending.extend(region.made_of.get(value, ()))
    return found


def above(rows: SharedRows, core: AttentionCore) -> dict[Value, None]:
    """What keys and values are on the way to the rows, those not among it."""
    found: dict[Value, None] = {}
    pending = [core.key, core.value]
    while pending:
        value = pending.pop()
        if value not in found and value not in rows.of_keys:
            found[value] = None
            pending.extend(rows.region.made_of.get(value, ()))
    return found


def end_of(region: Region, value: Value) -> Value:
    """Where a value comes from, through whatever has one operand."""
    while len(parts := region.made_of.get(value, ())) == 1:
        (value,) = parts
    return value


def named(values: list[Value] | tuple[Value, ...]) -> str:
    """Values as messages name them."""
    return ", ".join(value.name or "?" for value in values) or "nothing"


def makers(graph: Graph, values: list[Value]) -> tuple[Node, ...]:
    """The nodes that make values, each once."""
    nodes = (graph.producer(value) for value in values)
    return tuple(dict.fromkeys(node for node in nodes if node is not None))


def keeps_order(graph: Graph, operation: op.Layout, value: Value) -> bool:
    """Whether the elements of a row stay next to each other, all of them and in their order."""
    if isinstance(operation.move, op.Along):
        before, after = graph.sizes(operation.data[0]), graph.sizes(value)
        return before is not None and before == after and all(f for _, f in operation.move.axes)
    return isinstance(operation.move, op.Permuted | op.Reshaped)


def projection(graph: Graph, rows: SharedRows, latent: Value) -> Node | None:
    """The one linear layer that everything made of ``c_kv`` comes through, if there is one.

    None where something computes in front of it.
    """
    readers = [
        value
        for value, parts in rows.region.made_of.items()
        if latent in parts and value in rows.region.axes
    ]
    while len(readers) == 1:
        (value,) = readers
        node = graph.producer(value)
        assert node is not None
        operation = graph.operation(node)
        if isinstance(operation, op.Linear):
            return node
        if isinstance(operation, op.Scaled | op.ScaledBy):
            return None
        readers = [each for each, parts in rows.region.made_of.items() if value in parts]
    return None
