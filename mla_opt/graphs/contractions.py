"""The labels of products: which axes of the operands are one, and which are summed over."""

from __future__ import annotations

from collections.abc import Sequence

from mla_opt.graphs.operations import Contraction


def matmul(left: int, right: int, turned: tuple[bool, bool] = (False, False)) -> Contraction | None:
    """Of a product of ranks ``left`` and ``right`` over the last two axes, either transposed."""
    if left < 2 or right < 2:
        return None
    batch = tuple(f"b{axis}" for axis in range(max(left, right) - 2))
    rows, columns = ("m", "k"), ("k", "n")
    first = (*batch[len(batch) - (left - 2) :], *(rows[::-1] if turned[0] else rows))
    second = (*batch[len(batch) - (right - 2) :], *(columns[::-1] if turned[1] else columns))
    return Contraction(first, second, (*batch, "m", "n"))


def pointwise_convolution(rank: int) -> Contraction:
    """Of a convolution with a kernel of one place: ``[B, C, ...]`` with ``[O, C, 1 ...]``."""
    places = tuple(f"s{axis}" for axis in range(rank - 2))
    ones = tuple(f"one{axis}" for axis in range(rank - 2))
    return Contraction(("b", "c", *places), ("o", "c", *ones), ("b", "o", *places))


def swapped(axes: Contraction | None) -> Contraction | None:
    """The same product, its operands in the other order."""
    return None if axes is None else Contraction(axes.second, axes.first, axes.result)


def einsum(equation: str, ranks: Sequence[int | None]) -> Contraction | None:
    """Of an einsum of two operands of these ranks; ``None`` for any other, or with a diagonal."""
    labels = einsum_labels(equation, ranks)
    if labels is None or len(labels[0]) != 2:
        return None
    (first, second), result = labels
    return Contraction(first, second, result)


def einsum_labels(
    equation: str, ranks: Sequence[int | None]
) -> tuple[list[tuple[str, ...]], tuple[str, ...]] | None:
    """Labels of every operand and of the result; ``None`` where there is a diagonal.

    Axes that an ellipsis stands for are counted from the last of them, and named by that.
    """
    left, arrow, result = equation.replace(" ", "").partition("->")
    names = left.split(",")
    if not left or len(names) != len(ranks):
        return None
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        once = sorted({each for each in letters if letters.count(each) == 1})
        result = "..." * ("." in left) + "".join(once)
    found = [_spelled(each, rank) for each, rank in zip(names, ranks)]
    known = [each for each in found if each is not None]
    dots = max((len([label for label in each if "." in label]) for each in known), default=0)
    made = _labels(result, dots)
    everything = (*known, made)
    distinct = all(len(set(each)) == len(each) for each in everything)
    return (known, made) if len(known) == len(found) and distinct else None


def _spelled(text: str, rank: int | None) -> tuple[str, ...] | None:
    """Labels of an operand of this rank."""
    letters = len(text.replace("...", ""))
    if "." not in text:
        return tuple(text)
    return None if rank is None or rank < letters else _labels(text, rank - letters)


def _labels(text: str, dots: int) -> tuple[str, ...]:
    before, ellipsis, after = text.partition("...")
    between = (f".{place}" for place in reversed(range(dots))) if ellipsis else ()
    return (*before, *between, *after)


def tensordot(ranks: tuple[int, int], dims: tuple[Sequence[int], Sequence[int]]) -> Contraction:
    """Of a product that sums over these axes, pair by pair, and keeps all others in order."""
    names = [[f"{side}{place}" for place in range(rank)] for side, rank in zip("ab", ranks)]
    for count, (one, other) in enumerate(zip(*dims)):
        names[0][one] = names[1][other] = f"k{count}"
    result = (each for side in names for each in side if not each.startswith("k"))
    return Contraction(tuple(names[0]), tuple(names[1]), tuple(result))
