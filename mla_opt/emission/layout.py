"""Emitting what brings a value from the layout that its graph has into a standard one, and back.

    [B, S, H D]  --> reshape [B, S, H, D] --> transpose [B, H, S, D]

Nothing is emitted for a value that is in the standard form already.
"""

from __future__ import annotations

from collections.abc import Sequence

from mla_opt.graphs.protocol import Builder
from mla_opt.handles import Value
from mla_opt.sites.layout import Layout, Part, Role, is_standard, order_of, parts_of


def standard(
    builder: Builder, value: Value, layout: Layout, roles: Sequence[Role], name: str
) -> Value:
    """The value as one axis for each of ``roles``, of size one for those it does not have."""
    if is_standard(layout, roles):
        return value
    order = _turn(layout, roles)
    if order is not None:
        return builder.transpose(value, order, name)
    missing = _one_missing(layout, roles)
    if missing is not None:
        return builder.unsqueeze(value, missing, name)
    if not all(len(axis) == 1 for axis in layout):
        value = builder.reshape(value, _apart(builder, value, layout), f"{name}_apart")
    parts = parts_of(layout)
    places = order_of(layout, roles)
    if places != sorted(places):
        value = builder.transpose(value, places, f"{name}_turned")
    turned = [parts[place] for place in places]
    if [part.role for part in turned] == list(roles):
        return value
    return builder.reshape(value, _grouped(builder, value, turned, roles), name)


def _turn(layout: Layout, roles: Sequence[Role]) -> list[int] | None:
    """The order of axes that is standard, if they need but be permuted; any axis of one serves."""
    if len(layout) != len(roles) or any(len(axis) > 1 for axis in layout):
        return None
    places = {axis[0].role: place for place, axis in enumerate(layout) if axis}
    spare = [place for place, axis in enumerate(layout) if not axis]
    if len(places) + len(spare) != len(roles):
        return None
    return [places[role] if role in places else spare.pop(0) for role in roles]


def _one_missing(layout: Layout, roles: Sequence[Role]) -> int | None:
    """Where one axis of size one has to be put in, if that is all."""
    for place in range(len(roles)):
        if is_standard((*layout[:place], (), *layout[place:]), roles):
            return place
    return None


def restored(
    builder: Builder, value: Value, layout: Layout, roles: Sequence[Role], name: str
) -> Value:
    """A value of one axis a role in another layout: the inverse of :func:`standard`."""
    if is_standard(layout, roles):
        return value
    turn = _turn(layout, roles)
    if turn is not None:
        return builder.transpose(value, sorted(range(len(turn)), key=turn.__getitem__), name)
    parts = parts_of(layout)
    order = order_of(layout, roles)
    turned = [parts[place] for place in order]
    sizes = _sizes_of_parts(builder, value, turned, roles)
    if [part.role for part in turned] != list(roles):
        value = builder.reshape(value, builder.concat(sizes, 0, f"{name}_parts"), f"{name}_apart")
    back = sorted(range(len(order)), key=order.__getitem__)
    if back != sorted(back):
        value = builder.transpose(value, back, f"{name}_turned")
    if all(len(axis) == 1 for axis in layout):
        return value
    in_order = [sizes[place] for place in back]
    return builder.reshape(value, _axes(builder, in_order, layout, name), name)


def _apart(builder: Builder, value: Value, layout: Layout) -> Value:
    """The shape with an axis for each part, none for axes of size one."""
    sizes: list[Value] = []
    for place, axis in enumerate(layout):
        sizes.extend(_sizes_of_axis(builder, value, place, axis))
    return builder.concat(sizes, 0, "parts") if len(sizes) > 1 else sizes[0]


def _sizes_of_axis(
    builder: Builder, value: Value, place: int, axis: tuple[Part, ...]
) -> list[Value]:
    if len(axis) == 1 and axis[0].size is None:
        return [builder.dimension(value, place)]
    varying = [part for part in axis if part.size is None]
    if len(varying) > 1:
        raise ValueError("an axis of two parts whose sizes both vary cannot be taken apart")
    return [builder.integers(-1 if part.size is None else part.size) for part in axis]


def _grouped(
    builder: Builder, value: Value, turned: Sequence[Part], roles: Sequence[Role]
) -> Value:
    """The shape with one axis a role of a value with one axis a part."""
    sizes: list[Value] = []
    for role in roles:
        places = [place for place, part in enumerate(turned) if part.role == role]
        sizes.append(_product(builder, value, turned, places))
    return builder.concat(sizes, 0, "standard_shape")


def _product(
    builder: Builder, value: Value, turned: Sequence[Part], places: Sequence[int]
) -> Value:
    fixed = [turned[place].size for place in places]
    total = 1
    for size in fixed:
        total *= size or 1
    varying = [place for place in places if turned[place].size is None]
    if not varying:
        return builder.integers(total)
    product = builder.dimension(value, varying[0])
    for place in varying[1:]:
        product = builder.multiply(product, builder.dimension(value, place), "places")
    return product if total == 1 else builder.multiply(product, builder.integers(total), "places")


def _sizes_of_parts(
    builder: Builder, value: Value, turned: Sequence[Part], roles: Sequence[Role]
) -> list[Value]:
    """The size of each part of a value with one axis a role."""
    sizes = []
    for part in turned:
        if part.size is not None:
            sizes.append(builder.integers(part.size))
            continue
        others = [each for each in turned if each.role == part.role and each is not part]
        if others:
            raise ValueError("a role of two parts whose sizes vary cannot be taken apart")
        sizes.append(builder.dimension(value, list(roles).index(part.role)))
    return sizes


def _axes(builder: Builder, sizes: Sequence[Value], layout: Layout, name: str) -> Value:
    """The shape of the layout's axes, of the sizes of all parts in order."""
    rest = list(sizes)
    shape: list[Value] = []
    for axis in layout:
        own, rest = rest[: len(axis)], rest[len(axis) :]
        total = builder.integers(1) if not own else own[0]
        for size in own[1:]:
            total = builder.multiply(total, size, f"{name}_places")
        shape.append(total)
    return builder.concat(shape, 0, f"{name}_shape") if len(shape) > 1 else shape[0]
