"""Emits functional aten operators, and the fused operator, at one place of a PyTorch graph.

Every emitted node carries an example value, like those that the exporter made: the operator is run
on the examples of its operands. What passes treat as an int64 vector is `Sizes`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import sympy
import torch
from torch import fx

from mla_opt.errors import InputError, PassError
from mla_opt.geometry import MlaGeometry
from mla_opt.graphs.protocol import BranchBody, Builder, Size
from mla_opt.graphs.torch.branches import Conditional
from mla_opt.graphs.torch.lifted_program import LiftedProgram, expression
from mla_opt.graphs.torch.names import Names
from mla_opt.graphs.torch.values import Sizes, to_tensor
from mla_opt.handles import Array, Value
from mla_opt.operator import contract
from mla_opt.operator.kv_b import Storage
from mla_opt.operator.multi_head import INPUTS as MULTI_HEAD_INPUTS
from mla_opt.operator.torch.op import MULTI_HEAD_NAME, NAME
from mla_opt.sites import PrefillForm

__all__ = ["Names", "TorchBuilder"]

aten = torch.ops.aten

Operand = fx.Node | Sizes


class TorchBuilder:
    """Emits nodes in front of a node of the main graph, or into the graph of a branch.

    Stored tensors always go to the main graph. In a branch, ``capture`` tells what stands for a
    value of the main graph.
    """

    def __init__(
        self,
        program: LiftedProgram,
        graph: fx.Graph,
        before: fx.Node | None,
        prefix: str,
        names: Names,
        capture: Callable[[fx.Node], fx.Node] | None = None,
    ) -> None:
        self._program = program
        self._graph = graph
        self._before = before
        self._prefix = prefix
        self._names = names
        self._capture = capture

    # Emission

    def _emit(self, target: Any, args: tuple[Any, ...], name: str, **kwargs: Any) -> fx.Node:
        """One node, with the example value that the operator gives."""
        args, kwargs = fx.node.map_arg((args, kwargs), self.here)
        full = self._names.unique(f"{self._prefix}/{name}")
        if self._before is None:
            node = self._graph.create_node("call_function", target, args, kwargs, full)
        else:
            with self._graph.inserting_before(self._before):
                node = self._graph.create_node("call_function", target, args, kwargs, full)
        node.meta["val"] = self._example(target, args, kwargs)
        return node

    def _example(self, target: Any, args: Any, kwargs: Any) -> Any:
        examples = fx.node.map_arg((args, kwargs), lambda node: node.meta["val"])
        with self._program.fake_mode, torch.no_grad():
            return target(*examples[0], **examples[1])

    def here(self, node: fx.Node) -> fx.Node:
        """A value as this graph sees it: in a branch, what the main graph made is captured."""
        if self._capture is None or node.graph is self._graph:
            return node
        return self._capture(node)

    def dense(self, value: fx.Node) -> fx.Node:
        """The value with the strides of a dense tensor: both branches must return the same."""
        example = value.meta["val"]
        expected = expression(1)
        for size, stride in zip(reversed(example.shape), reversed(example.stride())):
            if sympy.expand(expression(stride) - expected) != 0:
                return self._emit(
                    aten.clone.default, (value,), "dense", memory_format=torch.contiguous_format
                )
            expected = expected * expression(size)
        return value

    def flat(self, value: fx.Node) -> fx.Node:
        """All elements of the value, one behind the other."""
        return self._emit(aten.reshape.default, (value, [-1]), f"{value.name}_flat")

    def shaped(self, value: fx.Node, sizes: Sequence[int | fx.Node]) -> fx.Node:
        """Elements that lie one behind the other, in a shape."""
        return self._emit(aten.view.default, (value, list(sizes)), f"{value.name}_shaped")

    def _parts(self, node: fx.Node, names: Sequence[str]) -> tuple[fx.Node, ...]:
        """The values of a node that makes several."""
        return tuple(
            self._emit(operator.getitem, (node, index), name) for index, name in enumerate(names)
        )

    # Stored tensors

    def constant(self, array: Array, name: str, dtype: np.dtype[Any] | None = None) -> fx.Node:
        """A stored tensor, on the device of the program's own."""
        made = array if dtype is None else array.astype(dtype, copy=False)
        return self._names.store(to_tensor(made), f"{self._prefix}/{name}")

    def integers(self, *numbers: int) -> Sizes:
        """Fixed sizes."""
        return Sizes(numbers)

    def scalar_like(self, number: float, like: fx.Node, name: str) -> fx.Node:
        """A scalar of another value's element type."""
        example = like.meta["val"]
        return self._emit(
            aten.full.default, ([], number), name, dtype=example.dtype, device=example.device
        )

    def scaled(self, value: fx.Node, number: float, like: fx.Node, name: str) -> fx.Node:
        """The value times a number."""
        made: fx.Node = self.multiply(value, self.scalar_like(number, like, "scale"), name)
        return made

    def declare_like(self, value: fx.Node, like: fx.Node) -> None:
        """Nothing to do: every value has a type."""

    def is_boolean(self, value: fx.Node) -> bool:
        """Whether the element type is boolean."""
        return bool(value.meta["val"].dtype == torch.bool)

    def prefill_crossover(
        self, geometry: MlaGeometry, counted: int, rows: fx.Node, name: str
    ) -> Sizes:
        """What counting says: a size that a program depends on is known when it is made."""
        del geometry, rows, name
        return self.integers(counted)

    # Sizes

    def size(self, size: Size) -> int | fx.Node:
        """A size put together from numbers and axes of values."""
        if isinstance(size, int):
            return size
        first, *others = (self._part_of_size(part) for part in size)
        for other in others:
            first = self._count(operator.add, first, other, "size")
        return first

    def _part_of_size(self, part: int | tuple[Value, int | None]) -> int | fx.Node:
        if isinstance(part, int):
            return part
        value, axis = part
        if axis is None:
            (size,) = cast(Sizes, value).parts
            return size
        return self.axis(cast(fx.Node, value), axis)

    def axis(self, value: fx.Node, axis: int) -> int | fx.Node:
        """Size of one axis: a number, or a node that reads it."""
        size = value.meta["val"].shape[axis]
        if isinstance(size, int):
            return size
        axis = axis % value.meta["val"].dim()
        return self._emit(aten.sym_size.int, (value, axis), f"axis{axis}")

    def _count(
        self, target: Any, left: int | fx.Node, right: int | fx.Node, name: str
    ) -> int | fx.Node:
        """A number from two, emitted only where one of them is not known."""
        if isinstance(left, int) and isinstance(right, int):
            return cast(int, target(left, right))
        return self._emit(target, (left, right), name)

    def dimension(self, value: fx.Node, axis: int) -> Sizes:
        """Size of one axis."""
        return Sizes((self.axis(value, axis),))

    def _either(
        self, counting: Any, computing: Any, left: Operand, right: Operand, name: str
    ) -> Any:
        """An operation on sizes, on tensors, or on a tensor and a size."""
        if isinstance(left, Sizes) and isinstance(right, Sizes):
            pairs = zip(left.parts, right.parts, strict=True)
            return Sizes(tuple(self._count(counting, one, other, name) for one, other in pairs))
        operands = tuple(
            each.parts[0] if isinstance(each, Sizes) else each for each in (left, right)
        )
        return self._emit(computing, operands, name)

    # Standard operators

    def matmul(self, left: fx.Node, right: fx.Node, name: str) -> fx.Node:
        """Matrix product over the last two axes."""
        return self._emit(aten.matmul.default, (left, right), name)

    def add(self, left: Operand, right: Operand, name: str) -> Any:
        """Sum, broadcasting."""
        return self._either(operator.add, aten.add.Tensor, left, right, name)

    def subtract(self, left: Operand, right: Operand, name: str) -> Any:
        """Difference, broadcasting."""
        return self._either(operator.sub, aten.sub.Tensor, left, right, name)

    def multiply(self, left: Operand, right: Operand, name: str) -> Any:
        """Product, broadcasting."""
        return self._either(operator.mul, aten.mul.Tensor, left, right, name)

    def divide(self, left: fx.Node, right: fx.Node, name: str) -> fx.Node:
        """``left / right``, broadcasting."""
        return self._emit(aten.div.Tensor, (left, right), name)

    def greater(self, left: Operand, right: Operand, name: str) -> Any:
        """True where ``left > right``."""
        return self._either(operator.gt, aten.gt.Tensor, left, right, name)

    def positions(self, count: Sizes, name: str) -> fx.Node:
        """``0 .. count - 1``, int64."""
        return self._emit(
            aten.arange.default, count.parts, name, dtype=torch.int64, device=self._names.device
        )

    def negate(self, condition: fx.Node, name: str) -> fx.Node:
        """True where ``condition`` is false."""
        return self._emit(aten.logical_not.default, (condition,), name)

    def both(self, left: fx.Node, right: fx.Node, name: str) -> fx.Node:
        """True where both are."""
        return self._emit(aten.logical_and.default, (left, right), name)

    def where(self, condition: fx.Node, chosen: fx.Node, other: fx.Node, name: str) -> fx.Node:
        """``chosen`` where ``condition``, else ``other``."""
        return self._emit(aten.where.self, (condition, chosen, other), name)

    def concat(self, parts: Sequence[Operand], axis: int, name: str) -> Any:
        """Concatenation."""
        if all(isinstance(part, Sizes) for part in parts):
            return Sizes(tuple(size for part in parts for size in cast(Sizes, part).parts))
        return self._emit(aten.cat.default, (list(parts), axis), name)

    def split(
        self, value: fx.Node, sizes: Sequence[int], axis: int, names: Sequence[str]
    ) -> tuple[fx.Node, ...]:
        """Consecutive pieces of the given sizes."""
        pieces = self._emit(aten.split_with_sizes.default, (value, list(sizes), axis), "split")
        return self._parts(pieces, names)

    def gather(self, value: fx.Node, indices: Sequence[int], axis: int, name: str) -> fx.Node:
        """The given positions of one axis, in order."""
        index = self._names.store(torch.tensor(list(indices)), f"{self._prefix}/{name}_indices")
        return self._emit(aten.index_select.default, (value, axis, index), name)

    def slice(self, value: Operand, start: int, end: int, axis: int, name: str) -> Any:
        """Positions ``start`` to ``end`` of one axis."""
        if isinstance(value, Sizes):
            return Sizes(value.parts[start:end])
        return self._emit(aten.slice.Tensor, (value, axis, start, end), name)

    def transpose(self, value: fx.Node, permutation: Sequence[int], name: str) -> fx.Node:
        """Axes permuted."""
        return self._emit(aten.permute.default, (value, list(permutation)), name)

    def reshape(self, value: fx.Node, shape: Sizes, name: str) -> fx.Node:
        """Same elements in another shape; 0 stands for the size that the value has there."""
        sizes = [
            self.axis(value, axis) if isinstance(size, int) and size == 0 else size
            for axis, size in enumerate(shape.parts)
        ]
        return self._with_ones(value, sizes, name) or self._emit(
            aten.reshape.default, (value, sizes), name
        )

    def _with_ones(self, value: fx.Node, sizes: Sequence[int | fx.Node], name: str) -> Any:
        """The value in another shape of which only axes of size one are other; else ``None``.

        To reshape such an axis PyTorch asks whether the next one has one place, too, and then the
        program holds for one of both alone.
        """
        known = [expression(n if isinstance(n, int) else n.meta["val"]) for n in sizes]
        own = [expression(size) for size in value.meta["val"].shape]
        if [size for size in own if size != 1] != [size for size in known if size != 1]:
            return None
        for axis in [axis for axis, size in enumerate(own) if size == 1][::-1]:
            value = self._emit(aten.squeeze.dim, (value, axis), f"{name}_squeezed")
        for axis in [axis for axis, size in enumerate(known) if size == 1]:
            value = self.unsqueeze(value, axis, name)
        return value

    def unsqueeze(self, value: fx.Node, axis: int, name: str) -> fx.Node:
        """One more axis of size one."""
        return self._emit(aten.unsqueeze.default, (value, axis), name)

    def expand(self, value: fx.Node, shape: Sizes, name: str) -> fx.Node:
        """Axes of size one repeated; ``shape`` has ones where nothing is repeated."""
        own = value.meta["val"].shape
        missing = len(shape.parts) - len(own)
        sizes = [
            -1 if isinstance(size, int) and size == 1 and place >= missing else size
            for place, size in enumerate(shape.parts)
        ]
        return self._emit(aten.expand.default, (value, sizes), name)

    def put(self, whole: fx.Node, places: fx.Node, rows: fx.Node, name: str) -> fx.Node:
        """``whole [B, 1, M, X]`` with ``rows [B, 1, S, X]`` in ``places [B or 1, 1, S, 1]``."""
        of_all = self.axis(places, 0) == 1
        flat = places
        for axis in (3, 1, 0)[: 2 + of_all]:
            flat = self._emit(aten.squeeze.dim, (flat, axis), "places")
        if of_all:
            return self._emit(aten.index_put.default, (whole, [None, None, flat], rows), name)
        counted = self.positions(self.dimension(whole, 0), "sequences")
        column = self._emit(aten.unsqueeze.default, (counted, 1), "sequence_column")
        by_row = [self._emit(aten.select.int, (each, 1, 0), "rows") for each in (whole, rows)]
        put = self._emit(aten.index_put.default, (by_row[0], [column, flat], by_row[1]), name)
        return self._emit(aten.unsqueeze.default, (put, 1), name)

    def write_rows(self, buffer: fx.Node, rows: fx.Node, start: fx.Node, name: str) -> fx.Node:
        """``buffer [B, 1, M, X]`` with ``rows [B, 1, S, X]`` from place ``start`` on."""
        end = self._count(operator.add, start, self.axis(rows, 2), "end")
        return self._emit(aten.slice_scatter.default, (buffer, rows, 2, start, end), name)

    def first(self, value: fx.Node, count: Sizes, axis: int, name: str) -> fx.Node:
        """The first ``count`` places of one axis."""
        return self._emit(aten.slice.Tensor, (value, axis, 0, count.parts[0]), name)

    def put_first(self, whole: fx.Node, part: fx.Node, name: str) -> fx.Node:
        """``whole`` with ``part`` in the place of as much of the first axis, from its front on."""
        end = self.axis(part, 0)
        return self._emit(aten.slice_scatter.default, (whole, part, 0, 0, end), name)

    def as_count(self, number: fx.Node) -> Sizes:
        """A number that the graph computes."""
        return Sizes((number,))

    def put_each(self, whole: fx.Node, places: fx.Node, rows: fx.Node, name: str) -> fx.Node:
        """Only attentions of ONNX Runtime need it."""
        raise InputError("a PyTorch program has no attention with buffers of its own")

    def softmax(self, value: fx.Node, name: str) -> fx.Node:
        """Softmax over the last axis."""
        return self._emit(aten.softmax.int, (value, -1), name)

    def row_maximum(self, value: fx.Node, name: str) -> fx.Node:
        """Maximum over the last axis, kept as an axis of size one."""
        return self._emit(aten.amax.default, (value, [-1], True), name)

    def cast_like(self, value: Operand, like: fx.Node, name: str) -> fx.Node:
        """The value in another's element type."""
        kind = like.meta["val"].dtype
        if isinstance(value, Sizes):
            device = like.meta["val"].device
            return self._emit(
                aten.full.default, ([1], value.parts[0]), name, dtype=kind, device=device
            )
        return self._emit(aten._to_copy.default, (value,), name, dtype=kind)

    def largest(self, value: fx.Node, name: str) -> Sizes:
        """Refused: a size that depends on data is none that the graph's other sizes know of."""
        raise PassError(
            f"{name}: the length of a buffer's past is data, which PyTorch's shapes cannot follow"
        )

    def widen_mask(self, bias: fx.Node, columns: Sizes, like: fx.Node, name: str) -> fx.Node:
        """Refused for the same reason: only buffers need it."""
        raise PassError(f"{name}: PyTorch programs have no buffers that are written in place")

    # The fused operator and branches

    def latent_attention(
        self,
        operands: Mapping[str, fx.Node],
        *,
        scale: float,
        kv_lora_rank: int,
        causal: bool,
        name: str,
        even: bool = False,
    ) -> tuple[fx.Node, ...]:
        """One ``latent_attention``; outputs in the contract's order."""
        _refuse_halves(even)
        values = tuple(operands.get(each) for each in contract.INPUTS)
        node = self._emit(
            getattr(torch.ops.mla_opt, NAME).default,
            values,
            name,
            scale=scale,
            kv_lora_rank=kv_lora_rank,
            causal=causal,
        )
        return self._outputs(node, operands)

    def multi_head_latent_attention(
        self,
        operands: Mapping[str, fx.Node],
        *,
        storage: Storage,
        scale: float,
        geometry: MlaGeometry,
        causal: bool,
        form: PrefillForm,
        name: str,
        even: bool = False,
    ) -> tuple[fx.Node, ...]:
        """One ``multi_head_latent_attention``; outputs in the contract's order."""
        _refuse_halves(even)
        node = self._emit(
            getattr(torch.ops.mla_opt, MULTI_HEAD_NAME).default,
            tuple(operands.get(each) for each in MULTI_HEAD_INPUTS),
            name,
            scale=scale,
            kv_lora_rank=geometry.kv_lora_rank,
            qk_nope_head_dim=geometry.qk_nope_head_dim,
            v_head_dim=geometry.v_head_dim,
            causal=causal,
            bits=storage.bits,
            block_size=storage.block_size,
            block_rows=storage.block_rows,
            form=form,
        )
        return self._outputs(node, operands)

    def _outputs(self, node: fx.Node, operands: Mapping[str, fx.Node]) -> tuple[fx.Node, ...]:
        """The outputs that a fused operator has with these operands."""
        appends = "latent" in operands and "cache" in operands
        present = 1 + appends + (appends and "rope_cache" in operands)
        return self._parts(node, contract.OUTPUTS[:present])

    def branch(
        self,
        condition: Sizes,
        when_true: BranchBody,
        when_false: BranchBody,
        name: str,
    ) -> tuple[fx.Node, ...]:
        """A conditional whose branches return the same outputs."""
        (chosen,) = condition.parts
        if isinstance(chosen, fx.Node) and self._program.specialize:
            chosen = bool(chosen.meta["val"])  # a guard: Dynamo compiles again for the other
        if isinstance(chosen, bool):  # every size is fixed: one branch is all there is
            return tuple(
                cast(Sequence[fx.Node], (when_true if chosen else when_false)(cast(Builder, self)))
            )
        conditional = Conditional(self, self._program, (when_true, when_false), name)
        modules = conditional.modules()
        paths = [self._names.submodule(module, f"{name}_{i}") for i, module in enumerate(modules)]
        branches = tuple(self._attribute(path) for path in paths)
        cond = torch.ops.higher_order.cond
        node = self._insert(cond, (chosen, *branches, conditional.operands), name)
        results = modules[1].graph.output_node().args[0]
        node.meta["val"] = tuple(each.meta["val"] for each in cast(Sequence[fx.Node], results))
        return self._parts(node, [str(index) for index in range(len(node.meta["val"]))])

    def inside(
        self, graph: fx.Graph, name: str, capture: Callable[[fx.Node], fx.Node]
    ) -> TorchBuilder:
        """A builder for the graph of a branch."""
        prefix = f"{self._prefix}/{name}"
        return TorchBuilder(self._program, graph, None, prefix, self._names, capture)

    def _insert(self, target: Any, args: tuple[Any, ...], name: str) -> fx.Node:
        full = self._names.unique(f"{self._prefix}/{name}")
        assert self._before is not None
        with self._graph.inserting_before(self._before):
            return self._graph.create_node("call_function", target, args, {}, full)

    def _attribute(self, path: str) -> fx.Node:
        assert self._before is not None
        with self._graph.inserting_before(self._before):
            return self._graph.get_attr(path)


def _refuse_halves(even: bool) -> None:
    if even:
        raise PassError("PyTorch's operator takes no caches that hold halves of rows")
