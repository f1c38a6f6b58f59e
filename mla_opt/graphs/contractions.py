"""The labels of products: which axes of the operands are one, and which are summed over."""

from __future__ import annotations

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


def einsum_labels(equation: str, operands: int) -> tuple[list[str], str] | None:
    """Letters of every operand and of the result; ``None`` with an ellipsis or a diagonal."""
    plain = equation.replace(" ", "")
    if "." in plain or not plain:
        return None
    left, arrow, result = plain.partition("->")
    names = left.split(",")
    if len(names) != operands or any(len(set(each)) != len(each) for each in names):
        return None
    if not arrow:
        once = {letter for letter in left if letter != "," and left.count(letter) == 1}
        result = "".join(sorted(once))
    return (names, result) if len(set(result)) == len(result) else None
