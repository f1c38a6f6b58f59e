"""What the axes of a value are: which places of it belong to which sequence, token or head.

An axis is a row-major product of *atoms*. An atom is a **variable**, one index that stays what it
is along the whole walk (a sequence, a token, a head), or it is **mixed**: places of a fixed number
in any order, of which running the graph tells the rest. Sequences and tokens are never mixed: an
operator that would is where a walk ends.

    keys       [B, H, T, D]     (b) (h) (t) (192)
    flattened  [B T, H D]       (b t) (h 192)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mla_opt.graphs import sizes
from mla_opt.graphs.sizes import Expression
from mla_opt.handles import Value


class ApartError(Exception):
    """An operator does to an axis what the walk cannot follow; says in words what.

    ``code`` is that of the refusal that comes of it.
    """

    code = "tokens_apart"


class UnknownShapeError(ApartError):
    """Too little is known of a shape to say what an operator does to axes."""

    code = "unknown_shape"


@dataclass(frozen=True, slots=True)
class Atom:
    """Part of an axis: the variable of that name, or mixed places if it has none.

    ``of`` are the variables that mixed places may depend on.
    """

    size: Expression
    name: str | None = None
    of: frozenset[str] = frozenset()

    @property
    def variables(self) -> frozenset[str]:
        """Every variable that the atom depends on."""
        return self.of if self.name is None else frozenset((self.name,))


Axis = tuple[Atom, ...]
Placement = tuple[Axis, ...]
"""The atoms of every axis of a value; an axis of size one has none."""


@dataclass(slots=True)
class Variables:
    """The variables of one attention: their sizes, what they were split into, which stay apart.

    ``whole`` are variables that may not be mixed even where their size is a number. ``told_apart``
    are those that something stored differs for on the way to a value: heads do, sequences never.
    """

    sizes: dict[str, Expression] = field(default_factory=dict)
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    told_apart: dict[Value, set[str]] = field(default_factory=dict)

    def new(self, name: str, size: Expression) -> Axis:
        """An axis of a variable of its own; an axis of size one needs none."""
        if size == 1:
            return ()
        self.sizes[name] = size
        return (Atom(size, name),)

    def split(self, name: str, first: Expression, second: Expression) -> tuple[Atom, Atom]:
        """Take a variable for two from now on, the first of them the slower one."""
        names = (f"{name}'", f"{name}''")
        for each, size in zip(names, (first, second)):
            self.sizes[each] = size
            if name in self.whole:
                self.whole.add(each)
        self.parts[name] = names
        return Atom(first, names[0]), Atom(second, names[1])

    def current(self, axis: Axis) -> Axis:
        """The axis in terms of the variables that there are by now."""
        result: list[Atom] = []
        for atom in axis:
            parts = None if atom.name is None else self.parts.get(atom.name)
            if parts is None:
                result.append(atom)
            else:
                result.extend(self.current(tuple(Atom(self.sizes[p], p) for p in parts)))
        return tuple(result)

    def names(self, name: str) -> tuple[str, ...]:
        """The variables that one was split into, or itself."""
        parts = self.parts.get(name)
        return (name,) if parts is None else tuple(n for part in parts for n in self.names(part))

    def tell_apart(self, value: Value, axis: Axis) -> None:
        """Note that something stored, which a value is made of, differs along an axis."""
        names = self.told_apart.setdefault(value, set())
        names.update(name for atom in self.current(axis) for name in atom.variables)

    def may_mix(self, atom: Atom) -> bool:
        """Whether places of the atom may be put in another order."""
        return isinstance(atom.size, int) and (atom.name is None or atom.name not in self.whole)

    def mixed(self, axis: Axis, size: Expression, what: str) -> Axis:
        """An axis of ``size`` places that depend on the atoms of ``axis`` in any way."""
        apart = [atom for atom in axis if not self.may_mix(atom)]
        if apart or not isinstance(size, int):
            raise ApartError(what)
        of = frozenset(name for atom in axis for name in atom.variables)
        return () if size == 1 and not of else (Atom(size, None, of),)


def width(atoms: Iterable[Atom]) -> Expression:
    """Places of all atoms together."""
    return sizes.product(atom.size for atom in atoms)


def regroup(variables: Variables, atoms: Sequence[Atom], shape: Sequence[Expression]) -> Placement:
    """The atoms, in their order, as the axes of another shape of as many elements.

    One axis may have another expression for its size than the variable that is all of it: with as
    many elements in all, and every other size the same, the two are equal in every call.

    Raises:
        ApartError: an axis begins or ends inside of an atom that cannot be split there.
    """
    rest = [atom for atom in atoms if atom.size != 1]
    axes: list[Axis] = []
    renamed = 0
    for size in shape:
        axis, rest = _take(variables, rest, size)
        renamed += not sizes.same(width(axis), size)
        axes.append(axis)
    if rest or renamed > 1:
        raise ApartError("it makes another number of elements")
    return tuple(axes)


def _take(variables: Variables, atoms: list[Atom], size: Expression) -> tuple[Axis, list[Atom]]:
    """Atoms from the front whose sizes make up ``size``, and what is left."""
    taken: list[Atom] = []
    while size != 1:
        if not atoms:
            raise ApartError("it makes another number of elements")
        atom, *rest = atoms
        left = sizes.quotient(size, atom.size)
        if left is not None:
            taken.append(atom)
            atoms, size = rest, left
            continue
        over = sizes.quotient(atom.size, size)
        if over is None:
            if not taken and atom.name is not None and not isinstance(size, int):
                return (atom,), rest
            raise ApartError(f"its sizes {size} and {atom.size} do not divide each other")
        first, second = _divided(variables, atom, size, over)
        taken.append(first)
        atoms, size = [second, *rest], 1
    return tuple(taken), atoms


def _divided(
    variables: Variables, atom: Atom, first: Expression, second: Expression
) -> tuple[Atom, Atom]:
    if atom.name is not None:
        return variables.split(atom.name, first, second)
    return Atom(first, None, atom.of), Atom(second, None, atom.of)


def merge(variables: Variables, one: Placement, other: Placement) -> Placement:
    """What is known of a value that is read in two ways.

    Raises:
        ApartError: the two disagree about a sequence or a token.
    """
    if len(one) != len(other):
        raise ApartError("it is read with two numbers of axes")
    return tuple(_merged(variables, a, b) for a, b in zip(one, other))


def _merged(variables: Variables, one: Axis, other: Axis) -> Axis:
    one, other = variables.current(one), variables.current(other)
    if one == other:
        return one
    if _layout(one) == _layout(other):
        return tuple(
            a if a == b else Atom(a.size, None, a.variables | b.variables)
            for a, b in zip(one, other)
        )
    size = width(one)
    if not sizes.same(size, width(other)):
        raise ApartError("it is read in two sizes")
    return variables.mixed((*one, *other), size, "its readers do not agree what its axes are")


def _layout(axis: Axis) -> list[tuple[Expression, str | None]]:
    """Sizes, and the names of what may not be mixed."""
    return [(atom.size, None if isinstance(atom.size, int) else atom.name) for atom in axis]
