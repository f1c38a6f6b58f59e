"""Whether values depend on stored tensors only: a walk back that no depth of a graph stops."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

V = TypeVar("V", bound=Hashable)


def depends_on_stored_only(
    value: V,
    known: dict[V, bool],
    verdict: Callable[[V], bool | None],
    operands: Callable[[V], Sequence[V]],
) -> bool:
    """Decide it for ``value`` and all that it takes to decide it, and note that in ``known``.

    Args:
        value: where to begin.
        known: what was decided before.
        verdict: what a value says by itself; ``None``: it is as its operands are.
        operands: what a value is computed from.
    """
    pending, path = [value], {value}
    while pending:
        current = pending[-1]
        if current not in known:
            own = verdict(current)
            if own is None:
                missing = _undecided(operands(current), known)
                if isinstance(missing, bool):
                    own = missing
                elif missing in path:  # a malformed graph, in a circle
                    own = False
                else:
                    pending.append(missing)
                    path.add(missing)
                    continue
            known[current] = own
        path.discard(pending.pop())
    return known[value]


def _undecided(operands: Sequence[V], known: dict[V, bool]) -> V | bool:
    """The first operand that has to be decided on, or what they all come to."""
    for operand in operands:
        if operand not in known:
            return operand
        if not known[operand]:
            return False
    return True
