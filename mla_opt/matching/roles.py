"""What each variable of an attention is: a sequence, a head, a token of query or keys."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Value
from mla_opt.matching.axes import Atom, Placement, Variables
from mla_opt.matching.core_axes import CoreAxes
from mla_opt.matching.not_latent import NotLatentError
from mla_opt.matching.region import new_tokens, past_tokens
from mla_opt.matching.shared_rows import SharedRows, above, atoms_of, end_of, makers, named
from mla_opt.sites import AttentionCore
from mla_opt.sites.layout import Layout, Part, Role


@dataclass(frozen=True, slots=True)
class Roles:
    """What each variable is: a sequence, a head, a token of the query or of the keys."""

    variables: Variables
    known: dict[str, tuple[Role, int]]

    @classmethod
    def of(cls, graph: Graph, core: AttentionCore, axes: CoreAxes, rows: SharedRows) -> Roles:
        """Sequences are what all rows differ by; the rest of the query are tokens and heads.

        Latent rows may differ by heads as well, which then come in groups: all that a token has of
        them is one row. A rotary row is the same for all heads.
        """
        variables = axes.variables
        known: dict[str, tuple[Role, int]] = {}
        for name in (axes.keys, new_tokens(axes.keys), past_tokens(axes.keys)):
            known.update(dict.fromkeys(variables.names(name), ("key", 0)))
        outer = [
            atom.name
            for atom in atoms_of(variables, axes.query)
            if atom.name is not None and atom.name not in known
        ]
        sequences = _sequences(variables, core, rows)
        partly = _not_of_all(variables, rows, set(outer) - sequences)
        if partly:
            raise _not_shared(graph, core, rows, partly)
        in_keys = _pure(variables, axes.key) | _pure(variables, axes.value)
        only_query = [name for name in outer if name not in in_keys]
        tokens = _query_tokens(variables, only_query)
        heads = [name for name in outer if name not in sequences and name not in tokens]
        known.update(
            {name: ("batch", place) for place, name in enumerate(outer) if name in sequences}
        )
        known.update({name: ("query", place) for place, name in enumerate(tokens)})
        known.update({name: ("head", place) for place, name in enumerate(heads)})
        return cls(variables, known)

    def layout(self, axes: Placement) -> Layout:
        """The roles of the axes of a value."""
        return tuple(
            tuple(self._part(atom) for atom in self.variables.current(axis)) for axis in axes
        )

    def of_rows(self, axes: Placement) -> Layout:
        """The same of rows, of which groups of heads are part of the width."""
        return tuple(tuple(map(_as_width, axis)) for axis in self.layout(axes))

    def groups(self, axes: Placement) -> int:
        """How many groups of heads latent rows are told apart for."""
        heads = [part for axis in self.layout(axes) for part in axis if part.role == "head"]
        return math.prod(part.size or 1 for part in heads)

    def _part(self, atom: Atom) -> Part:
        size = atom.size if isinstance(atom.size, int) else None
        role, number = self.known.get(atom.name or "", ("width", 0))
        return Part(role, size, number)


def _sequences(variables: Variables, core: AttentionCore, rows: SharedRows) -> set[str]:
    """What all rows differ by, and nothing stored that makes keys and values of them does."""
    kept = [_pure(variables, rows.region.axes[row]) for row in (*rows.shared, *rows.of_keys_only)]
    told = {
        each
        for value in above(rows, core)
        for name in variables.told_apart.get(value, ())
        for each in variables.names(name)
    }
    return set.intersection(*kept) - told


def _not_of_all(variables: Variables, rows: SharedRows, names: set[str]) -> list[str]:
    """Heads that a rotary row differs by, and what is no head but not in every row."""
    of_latents, of_rope = (
        {name for row in group for name in _pure(variables, rows.region.axes[row])}
        for group in (rows.shared, rows.of_keys_only)
    )
    varying = {name for name in of_latents if not isinstance(variables.sizes[name], int)}
    return sorted(names & (of_rope | varying))


def _as_width(part: Part) -> Part:
    return replace(part, role="width", number=0) if part.role == "head" else part


def _not_shared(
    graph: Graph, core: AttentionCore, rows: SharedRows, partly: list[str]
) -> NotLatentError:
    """Rows of which some differ from head to head, and others do not."""
    for value in rows.of_keys:
        end = end_of(rows.region, value)
        leaf = rows.region.leaves.get(end)
        if leaf is not None and leaf.kind == "apart" and set(partly) & _names(rows, end):
            return NotLatentError("tokens_apart", f"in the keys, {leaf.why}", makers(graph, [end]))
    return NotLatentError(
        "rope_per_head",
        f"{named(rows.of_keys_only or rows.shared)} differ from head to head, so they are no row"
        " that all heads share",
        makers(graph, list(rows.of_keys_only)) or (core.first,),
        "nothing, if every head has a rotary part of its own",
    )


def _names(rows: SharedRows, value: Value) -> set[str]:
    return {name for axis in rows.region.axes[value] for atom in axis for name in atom.variables}


def _pure(variables: Variables, axes: Placement) -> set[str]:
    return {atom.name for atom in atoms_of(variables, axes) if atom.name is not None}


def _query_tokens(variables: Variables, names: list[str]) -> list[str]:
    """Which of what only the query has are tokens: those of varying number, else the last."""
    varying = [name for name in names if not isinstance(variables.sizes[name], int)]
    return varying or names[-1:]
