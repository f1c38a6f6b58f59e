"""A PyTorch program as ONNX shows it, as far as reading an interface needs.

Which input holds tokens, positions, a mask or a state is read off what the graph does with it
(:mod:`mla_opt.graphs.interface.interface`). That reads ONNX; so a program is shown to it as a graph
of the same wiring, in which the operators that it looks for have their ONNX names and all others
are opaque. Stored tensors are there with their shape and type. A number that rows are written from
is drawn as the start of a range of places, as ONNX has it.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, cast

import onnx_ir as ir
import torch
from torch import fx

from mla_opt.graphs.torch.arguments import argument
from mla_opt.graphs.torch.fused import is_multi_head
from mla_opt.graphs.torch.lifted_program import LiftedProgram, is_tensor, symbolic_shape
from mla_opt.graphs.torch.reading import operator_name
from mla_opt.operator import contract
from mla_opt.operator.multi_head import MULTI_HEAD_OP_TYPE

_NAMES = {
    "embedding": "Gather",
    "cat": "Concat",
    "view": "Reshape",
    "reshape": "Reshape",
    "_unsafe_view": "Reshape",
    "unsqueeze": "Unsqueeze",
    "squeeze": "Squeeze",
    "transpose": "Transpose",
    "permute": "Transpose",
    "t": "Transpose",
    "expand": "Expand",
    "alias": "Identity",
    "clone": "Identity",
    "detach": "Identity",
    "slice": "Identity",
    "_to_copy": "Cast",
    "to": "Cast",
    "mul": "Mul",
    "matmul": "MatMul",
    "bmm": "MatMul",
    "mm": "MatMul",
    "einsum": "Einsum",
    "cos": "Cos",
    "sin": "Sin",
    "index_put": "ScatterND",
    "index_copy": "ScatterND",
    "scatter": "ScatterElements",
    "add": "Add",
    "lift_fresh_copy": "Identity",
    "logical_not": "Not",
    "bitwise_not": "Not",
    "logical_or": "Or",
    "bitwise_or": "Or",
    "__or__": "Or",
    "logical_and": "And",
    "bitwise_and": "And",
    "__and__": "And",
}
#: Operators of which some operands may be numbers, and where their operands are in ONNX's order.
_WITH_NUMBERS = {
    "where": ("Where", (0, 1, 2)),
    "masked_fill": ("Where", (1, 2, 0)),
    "mul": ("Mul", (0, 1)),
    "sub": ("Sub", (0, 1)),
    "rsub": ("Sub", (1, 0)),
    "eq": ("Equal", (0, 1)),
    "gt": ("Greater", (0, 1)),
    "ge": ("GreaterOrEqual", (0, 1)),
    "lt": ("Less", (0, 1)),
    "le": ("LessOrEqual", (0, 1)),
}
#: Where a tensor of one number repeated has that number.
_FILLS = {"full": 1, "full_like": 1, "new_full": 2, "scalar_tensor": 0}
_OPAQUE_DOMAIN = "torch"


def skeleton(program: LiftedProgram) -> ir.Model:
    """The wiring of a program; stored tensors share their memory."""
    drawing = _Drawing()
    inputs = [drawing.value(node) for node in (*program.inputs, *program.counts)]
    for node, stored in program.stored.items():
        value = drawing.value(node)
        value.const_value = ir.tensor_adapters.TorchTensor(stored.tensor, name=value.name)
    drawing.draw(program.graph, program.module)
    graph = ir.Graph(
        inputs=inputs,
        outputs=[drawing.output(node) for node in program.outputs],
        nodes=drawing.nodes,
        initializers=[drawing.value(node) for node in program.stored],
        opset_imports={"": 23, _OPAQUE_DOMAIN: 1, contract.DOMAIN: contract.VERSION},
        name="program",
    )
    model = ir.Model(graph, ir_version=10)
    model.metadata_props.update(program.metadata)
    return model


class _Drawing:
    """Values and nodes drawn so far."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self._values: dict[fx.Node, ir.Value] = {}
        self._returned: set[ir.Value] = set()

    def value(self, node: fx.Node) -> ir.Value:
        """The drawn value of an FX value."""
        if node not in self._values:
            self._values[node] = _drawn(node)
        return self._values[node]

    def output(self, node: fx.Node) -> ir.Value:
        """The drawn value to return: an input that is returned gets a copy."""
        value = self.value(node)
        if node.op != "placeholder" and value not in self._returned:
            self._returned.add(value)
            return value
        copy = _drawn(node, f"{node.name}_returned")
        self.nodes.append(ir.node("Identity", [value], outputs=[copy]))
        return copy

    def draw(self, graph: fx.Graph, module: torch.nn.Module) -> None:
        """Draw all nodes of a graph."""
        for node in graph.nodes:
            if node.op != "call_function" or node.target is operator.getitem:
                continue
            if isinstance(node.target, torch._ops.HigherOrderOperator):
                self._draw_branch(node, module)
            else:
                self._draw_node(node)

    def _draw_start(self, node: fx.Node) -> None:
        """The place that rows are written from, where it is an argument of the program."""
        start = argument(node, 3, "start")
        given = isinstance(start, fx.Node) and start.op == "placeholder"
        if operator_name(node) == "slice_scatter" and given:
            self.nodes.append(ir.node("Range", [self.value(start)] * 3))

    def _draw_node(self, node: fx.Node) -> None:
        self._draw_start(node)
        parts = _parts(node)
        outputs = [self.value(part) for part in parts if is_tensor(part)]
        if not outputs:
            return
        if _is_ours(node):
            inputs = [self._operand(each) for each in node.args]
            kind = MULTI_HEAD_OP_TYPE if is_multi_head(node) else contract.OP_TYPE
            drawn = ir.node(kind, inputs, domain=contract.DOMAIN, outputs=outputs)
        else:
            drawn = self._of_pytorch(node, outputs)
        self.nodes.append(drawn)

    def _of_pytorch(self, node: fx.Node, outputs: list[ir.Value]) -> ir.Node:
        """A node of PyTorch's own, under ONNX's name if it is one of those that are looked for."""
        name = operator_name(node)
        fill = argument(node, _FILLS[name], "fill_value") if name in _FILLS else None
        if isinstance(fill, (int, float)):
            made = {"value": ir.tensor(float(fill))}
            return ir.node("Constant", [], attributes=made, outputs=outputs)
        if name in _WITH_NUMBERS and len(node.args) == len(_WITH_NUMBERS[name][1]):
            kind, places = _WITH_NUMBERS[name]
            operands = [self._number_or_value(node.args[place]) for place in places]
            if None not in operands and not node.kwargs:
                return ir.node(kind, operands, outputs=outputs)
        known = _NAMES.get(name)
        given = [self.value(each) for each in _read(node) if is_tensor(each)]
        kind, domain = (known, "") if known else (_word(node), _OPAQUE_DOMAIN)
        return ir.node(kind, given, domain=domain, outputs=outputs)

    def _number_or_value(self, argument: Any) -> ir.Value | None:
        """An operand that is a tensor, or a number, which is drawn as a constant."""
        if isinstance(argument, fx.Node):
            return self.value(argument) if is_tensor(argument) else None
        if not isinstance(argument, (int, float)):
            return None
        self.nodes.append(ir.node("Constant", [], attributes={"value": ir.tensor(float(argument))}))
        return self.nodes[-1].outputs[0]

    def _operand(self, argument: Any) -> ir.Value | None:
        return self.value(argument) if isinstance(argument, fx.Node) else None

    def _draw_branch(self, node: fx.Node, module: torch.nn.Module) -> None:
        """Draw the second branch of a conditional in its place: both return the same states."""
        branch = _second_branch(node, module)
        if branch is None:
            self._draw_node(node)
            return
        operands = cast(Sequence[fx.Node], node.args[3])
        places = [each for each in branch.graph.nodes if each.op == "placeholder"]
        self._values.update(
            (inner, self.value(outer)) for inner, outer in zip(places, operands) if is_tensor(outer)
        )
        self.draw(branch.graph, branch)
        results = cast(Sequence[fx.Node], branch.graph.output_node().args[0])
        for part in _parts(node):
            inner = results[cast(int, part.args[1])]
            self.nodes.append(ir.node("Identity", [self.value(inner)], outputs=[self.value(part)]))


def _read(node: fx.Node) -> list[fx.Node]:
    """What a node reads; of indices the last, which says the places on the axis of tokens."""
    if operator_name(node) != "index_put":
        return node.all_input_nodes
    whole, indices, rows = node.args[:3]
    return [each for each in (whole, indices[-1], rows) if isinstance(each, fx.Node)]  # type: ignore[index]


def _second_branch(node: fx.Node, module: torch.nn.Module) -> fx.GraphModule | None:
    if node.target is not torch.ops.higher_order.cond:
        return None
    attribute = node.args[2]
    assert isinstance(attribute, fx.Node)
    branch = module.get_submodule(cast(str, attribute.target))
    return branch if isinstance(branch, fx.GraphModule) else None


def _parts(node: fx.Node) -> list[fx.Node]:
    """The values that a node makes."""
    parts = [user for user in node.users if user.target is operator.getitem]
    return sorted(parts, key=lambda part: cast(int, part.args[1])) or [node]


def _is_ours(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target.namespace == contract.DOMAIN


def _word(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).replace(".", "_")


def _drawn(node: fx.Node, name: str | None = None) -> ir.Value:
    if isinstance(node.meta.get("val"), torch.SymInt):
        number = ir.TensorType(ir.DataType.INT64)
        return ir.Value(name=node.name, shape=ir.Shape(()), type=number)
    shape = symbolic_shape(node)
    dims = [size if isinstance(size, int) else str(size) for size in shape or ()]
    kind = (
        ir.tensor_adapters.from_torch_dtype(node.meta["val"].dtype) if shape is not None else None
    )
    return ir.Value(
        name=name or node.name,
        shape=None if shape is None else ir.Shape(dims),
        type=None if kind is None else ir.TensorType(kind),
    )
