"""Breaking an ONNX model on purpose; it makes no difference whether the operator is inlined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.graphs.onnx.quantization.operators import quantization_operators
from mla_opt.operator.onnx.body_tape import CAST_LIKE_SINCE
from mla_opt.verification.onnx.quantized import quantized_name
from mla_opt.verification.site_records import METADATA_KEY, SiteRecord


@dataclass(frozen=True, slots=True)
class BreakableOnnx:
    """An ONNX model."""

    model: ir.Model

    def clone(self) -> BreakableOnnx:
        """A copy that shares the stored tensors."""
        return BreakableOnnx(self.model.clone())

    def lost_query(self, site: SiteRecord) -> str | None:
        """A quantized model may have it in integers only, under another name."""
        if self._is_quantized() and not self._named(site.query):
            return "quantized: the absorbed query is nowhere in floating point"
        return None

    def lost_w_uk(self, site: SiteRecord) -> str | None:
        """A quantized model may store it in another form."""
        if self._is_quantized() and site.kv_b is None and self._stored(site) is None:
            return "quantized: W_UK is not stored as a tensor of three dimensions"
        return None

    def _is_quantized(self) -> bool:
        return bool(quantization_operators(self.model))

    def heads(self, site: SiteRecord) -> int | None:
        """H of the stored W_UK."""
        if site.kv_b is not None:
            return site.num_heads
        shape = self._initializer(site).shape
        return shape[0] if shape is not None and isinstance(shape[0], int) else None

    def heads_are_alike(self, site: SiteRecord) -> bool:
        """Whether every head has the same W_UK, as where it was absorbed by hand."""
        parts = self._parts_of_heads(site) if site.kv_b is not None else [self._content(site)]
        return all(bool((part == part[:1]).all()) for part in parts)

    def scale_query(self, site: SiteRecord, factor: float) -> None:
        """Multiply the absorbed query."""

        def rescaled(query: ir.Value) -> list[ir.Node]:
            value = ir.tensor(np.asarray(factor, np.float32))
            constant = ir.node("Constant", [], {"value": value})
            cast = self._cast_like(constant.outputs[0], query)
            return [constant, cast, ir.node("Mul", [query, cast.outputs[0]])]

        self._splice(site, rescaled)

    def reorder_query(self, site: SiteRecord, order: npt.NDArray[Any]) -> None:
        """Gather the last axis of the absorbed query."""

        def reordered(query: ir.Value) -> list[ir.Node]:
            constant = ir.node("Constant", [], {"value": ir.tensor(order.astype(np.int64))})
            return [constant, ir.node("Gather", [query, constant.outputs[0]], {"axis": -1})]

        self._splice(site, reordered)

    def shift_heads(self, site: SiteRecord) -> None:
        """Roll W_UK by one along its heads."""
        if site.kv_b is not None:
            self._shift_rows(site)
            return
        weight, content = self._initializer(site), self._content(site)
        dtype = None if weight.const_value is None else weight.const_value.dtype
        weight.const_value = ir.Tensor(np.roll(content, 1, axis=0), dtype=dtype, name=weight.name)

    def _content(self, site: SiteRecord) -> npt.NDArray[Any]:
        weight = self._initializer(site)
        if weight.const_value is None:
            raise InputError(f"{METADATA_KEY}: initializer {weight.name!r} has no data")
        return weight.const_value.numpy()

    def _shift_rows(self, site: SiteRecord) -> None:
        """Roll the rows of W_UK in ``kv_b``, its scales and its zero points."""
        nope = site.qk_nope_head_dim
        for name in self._rows_of_heads(site):
            tensor, by_head = self._by_head(site, name)
            by_head[:, :nope] = np.roll(by_head[:, :nope], 1, axis=0)
            rolled = by_head.reshape(tensor.shape.numpy())
            value = self.model.graph.initializers[name]
            value.const_value = ir.Tensor(rolled, dtype=tensor.dtype, name=name)

    def _rows_of_heads(self, site: SiteRecord) -> list[str]:
        """Names of ``kv_b`` and of what has as many rows.

        Scales that several rows share belong to no head.
        """
        stored = self.model.graph.initializers
        shapes = [None if name not in stored else stored[name].shape for name in site.held]
        rows = [None if shape is None else shape[0] for shape in shapes]
        return [name for name, count in zip(site.held, rows) if count in (None, rows[0])]

    def _parts_of_heads(self, site: SiteRecord) -> list[npt.NDArray[Any]]:
        """W_UK of every head in all tensors that hold it."""
        held = [self._by_head(site, name)[1] for name in self._rows_of_heads(site)]
        return [by_head[:, : site.qk_nope_head_dim] for by_head in held]

    def _by_head(self, site: SiteRecord, name: str) -> tuple[ir.TensorProtocol, npt.NDArray[Any]]:
        """A tensor that a site holds, and a copy of it with an axis for heads."""
        value = self.model.graph.initializers.get(name)
        if value is None or value.const_value is None or site.num_heads is None:
            raise InputError(
                f"{METADATA_KEY}: site {site.name!r} names {name!r}, which is no initializer"
            )
        content = value.const_value.numpy()
        by_head = content.reshape(site.num_heads, -1, *content.shape[1:]).copy()
        return value.const_value, by_head

    def _cast_like(self, value: ir.Value, like: ir.Value) -> ir.Node:
        """Convert to the type of ``like``: before CastLike, the one noted there or the weights'."""
        if self.model.opset_imports.get("", CAST_LIKE_SINCE) >= CAST_LIKE_SINCE:
            return ir.node("CastLike", [value, like])
        stored = (each.dtype for each in self.model.graph.initializers.values())
        floats = (kind for kind in (like.dtype, *stored) if kind is not None)
        kind = next((kind for kind in floats if kind.is_floating_point()), ir.DataType.FLOAT)
        return ir.node("Cast", [value], {"to": int(kind)})

    def _initializer(self, site: SiteRecord) -> ir.Value:
        """The initializer of W_UK, wherever it is kept."""
        value = self._stored(site)
        if value is None:
            raise InputError(
                f"{METADATA_KEY}: site {site.name!r} names w_uk {site.w_uk!r}, which is no"
                " initializer of three dimensions"
            )
        return value

    def _stored(self, site: SiteRecord) -> ir.Value | None:
        """W_UK, or the integers that a quantizer has put in its place."""
        if site.w_uk is None:
            return None
        for name in (site.w_uk, quantized_name(site.w_uk)):
            for graph in self.model.graphs():
                value = graph.initializers.get(name)
                if value is not None and value.shape is not None and value.shape.rank() == 3:
                    return value
        return None

    def _splice(self, site: SiteRecord, make: Callable[[ir.Value], list[ir.Node]]) -> None:
        """Put the nodes of ``make`` between the absorbed query and all that read it."""
        for query in self._queries(site):
            producer = query.producer()
            graph = producer.graph if producer is not None else None
            if producer is None or graph is None:
                continue
            nodes = make(query)
            for node in nodes:  # a branch must not use a name of the graph around it
                node.outputs[0].name = f"{query.name}/control/{node.op_type}"
            readers = [use for use in query.uses() if use.node not in nodes]
            graph.insert_after(producer, nodes)
            for node, index in readers:
                node.replace_input_with(index, nodes[-1].outputs[0])

    def _queries(self, site: SiteRecord) -> list[ir.Value]:
        """Every value of that name; two branches may each have one."""
        found = self._named(site.query)
        if not found:
            raise InputError(
                f"{METADATA_KEY}: site {site.name!r} names query {site.query!r}, which no node of"
                " the model makes"
            )
        return found

    def _named(self, name: str) -> list[ir.Value]:
        nodes = (node for graph in self.model.graphs() for node in graph)
        return [value for node in nodes for value in node.outputs if value.name == name]
