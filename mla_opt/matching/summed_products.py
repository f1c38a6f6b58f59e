"""Scores that are a sum of products, with the roles that their axes have.

    q_nope @ k_nope^T + q_rope @ k_rope^T        q_absorbed @ c_kv^T + q_rope @ k_pe^T

    (q @ k^T) * numbers of the heads

They are one product, of the parts side by side. What is a head and what a token is told by who has
it: keys have no query tokens, and heads are a fixed number.
"""

from __future__ import annotations

from collections.abc import Iterator

from mla_opt.graphs import sizes
from mla_opt.graphs.protocol import Graph
from mla_opt.graphs.sizes import Expression
from mla_opt.matching.axes import Atom, Placement, Variables
from mla_opt.matching.core_axes import KEYS
from mla_opt.matching.normalised import normalised
from mla_opt.matching.score_product import Product
from mla_opt.matching.scores import Scores
from mla_opt.matching.softmax_core import scores_before
from mla_opt.sites.layout import Layout, Part, Role, head_count, parts_of
from mla_opt.sites.products import HeadScale, ScoreProduct, SummedProducts

_Roles = dict[str, tuple[Role, int]]


def summed_products(graph: Graph) -> Iterator[SummedProducts]:
    """Yield the scores of every softmax that are more than one product, in graph order."""
    for node in graph.nodes():
        softmax = normalised(graph, node)
        variables = Variables()
        found = None if softmax is None else scores_before(graph, variables, softmax)
        if found is not None and not found[0].is_one:
            read = _read(graph, variables, found[0])
            if read is not None:
                yield read


def _read(graph: Graph, variables: Variables, scores: Scores) -> SummedProducts | None:
    """The sum, if the axes of all that it is made of are known; ``None`` else."""
    total = scores.total.axes
    parts = [(each.query.axes, each.key.axes) for each in scores.products]
    known = [(query, key) for query, key in parts if query is not None and key is not None]
    if scores.unsupported or scores.lost or total is None or len(known) < len(parts):
        return None
    roles = _roles(variables, total, [key for _, key in known])
    if roles is None or not all(_is_part(variables, roles, *each) for each in known):
        return None
    layouts = [(_layout(variables, roles, q), _layout(variables, roles, k)) for q, k in known]
    whole = _layout(variables, roles, total)
    if not all(
        _comes_apart(each) for each in (whole, *(each for pair in layouts for each in pair))
    ):
        return None
    scales = [_scales(graph, variables, roles, each) for each in scores.products]
    products = tuple(
        ScoreProduct(each.query.value, query, each.key.value, key, each.factor, of_heads)
        for each, (query, key), of_heads in zip(scores.products, layouts, scales)
        if of_heads is not None
    )
    if len(products) < len(scores.products):
        return None
    return SummedProducts(products, scores.total.value, whole, scores.at, head_count(whole))


def _scales(
    graph: Graph, variables: Variables, roles: _Roles, product: Product
) -> tuple[HeadScale, ...] | None:
    """The stored scales of a product, each with a number for every head; ``None``: others."""
    found = []
    for scale in product.scales:
        layout = None if scale.at.axes is None else _layout(variables, roles, scale.at.axes)
        names = set() if scale.at.axes is None else set(_names(variables, scale.at.axes))
        heads = {name for name, (role, _) in roles.items() if role == "head"}
        alike = graph.dtype(scale.at.value) == graph.dtype(product.query.value)
        if layout is None or names != heads or not alike:
            return None
        if any(part.role != "head" for part in parts_of(layout)):
            return None
        found.append(HeadScale(scale.at.value, layout, scale.divides))
    return tuple(found)


def _roles(variables: Variables, total: Placement, keys: list[Placement]) -> _Roles | None:
    """What the variables of the scores are; ``None`` where one may be this or that."""
    of_keys = [set(_names(variables, key)) for key in keys]
    tokens = set(variables.names(KEYS))
    outer = [name for name in _names(variables, total) if name not in tokens]
    only_query = [name for name in outer if not any(name in names for names in of_keys)]
    varying = [name for name in only_query if not isinstance(variables.sizes[name], int)]
    new = varying or only_query[-1:]
    fixed = [n for n in outer if n not in new and isinstance(variables.sizes[n], int)]
    in_all = {name for name in outer if all(name in names for names in of_keys)}
    alike = in_all.issuperset(fixed)  # then those of sequences need not be told from heads
    roles: _Roles = dict.fromkeys(tokens, ("key", 0))
    for place, name in enumerate(outer):
        if name in new:
            roles[name] = ("query", place)
        elif name in fixed and (alike or name not in in_all):
            roles[name] = ("head", place)
        elif name in in_all:
            roles[name] = ("batch", place)
        else:
            return None
    return roles


def _is_part(variables: Variables, roles: _Roles, query: Placement, key: Placement) -> bool:
    """Whether query and key have every sequence and token in one piece, and one width."""
    found = [_one_width(variables, axes) for axes in (query, key)]
    if None in found or not sizes.same(*found):
        return False
    heads = {name for name, (role, _) in roles.items() if role == "head"}
    for axes, token in ((query, "query"), (key, "key")):
        own = set(_names(variables, axes))
        needed = {name for name, (role, _) in roles.items() if role in ("batch", token)}
        if not needed <= own or (own & heads and not heads <= own):
            return False
    return True


def _one_width(variables: Variables, axes: Placement) -> Expression | None:
    """How many numbers are multiplied; ``None`` where those are several axes, or mixed ones."""
    names = _names(variables, axes)
    widths = [atom for axis in axes for atom in variables.current(axis) if atom.name is None]
    if len(widths) > 1 or any(atom.of for atom in widths) or len(set(names)) < len(names):
        return None
    return widths[0].size if widths else 1


def _names(variables: Variables, axes: Placement) -> list[str]:
    atoms = (atom for axis in axes for atom in variables.current(axis))
    return [atom.name for atom in atoms if atom.name is not None]


def _layout(variables: Variables, roles: _Roles, axes: Placement) -> Layout:
    return tuple(tuple(_part(roles, atom) for atom in variables.current(axis)) for axis in axes)


def _part(roles: _Roles, atom: Atom) -> Part:
    role, number = roles.get(atom.name or "", ("width", 0))
    return Part(role, atom.size if isinstance(atom.size, int) else None, number)


def _comes_apart(layout: Layout) -> bool:
    """Whether no axis, and no role, is of two parts whose sizes vary."""
    varying = [part for part in parts_of(layout) if part.size is None]
    of_axes = (sum(part.size is None for part in axis) for axis in layout)
    return len({part.role for part in varying}) == len(varying) and all(n < 2 for n in of_axes)
