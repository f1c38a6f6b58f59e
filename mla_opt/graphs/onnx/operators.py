"""Emits this package's own operators, each with its function body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from mla_opt.geometry import MlaGeometry
from mla_opt.graphs.onnx.emitter import Emitter, set_dtype
from mla_opt.operator import contract
from mla_opt.operator.crossover import CROSSOVER_OP_TYPE, crossover_attributes, define_crossover
from mla_opt.operator.kv_b import Storage
from mla_opt.operator.multi_head import MULTI_HEAD_OP_TYPE, MultiHeadSignature
from mla_opt.operator.onnx.multi_head_node import define_multi_head, multi_head_signature_of
from mla_opt.operator.onnx.node import define, signature_of
from mla_opt.operator.paged_attention import DOMAIN as RUNTIME_DOMAIN
from mla_opt.operator.paged_attention import OP_TYPE as PAGED_ATTENTION
from mla_opt.operator.paged_attention import PagedSignature
from mla_opt.sites import PrefillForm


class OperatorBuilder(Emitter):
    """The part of the builder that emits the fused attentions and what decides between forms."""

    def latent_attention(
        self,
        operands: Mapping[str, ir.Value],
        *,
        scale: float,
        kv_lora_rank: int,
        causal: bool,
        name: str,
        even: bool = False,
    ) -> tuple[ir.Value, ...]:
        """One ``LatentAttention`` with its function body; outputs in the contract's order."""
        signature = signature_of(operands, causal, even=even)
        overload = define(self._model, signature, operands["query"].dtype, style=self._style)
        attributes = signature.node_attributes(scale, kv_lora_rank)
        return self._attention(contract.OP_TYPE, operands, signature, attributes, name, overload)

    def multi_head_latent_attention(
        self,
        operands: Mapping[str, ir.Value],
        *,
        storage: Storage,
        scale: float,
        geometry: MlaGeometry,
        causal: bool,
        form: PrefillForm,
        name: str,
        even: bool = False,
    ) -> tuple[ir.Value, ...]:
        """One ``MultiHeadLatentAttention`` with its body; outputs in the contract's order."""
        signature = multi_head_signature_of(operands, storage, form, causal, even=even)
        overload = define_multi_head(
            self._model, signature, operands["query"].dtype, style=self._style
        )
        attributes = signature.node_attributes(scale, geometry)
        return self._attention(MULTI_HEAD_OP_TYPE, operands, signature, attributes, name, overload)

    def _attention(
        self,
        op_type: str,
        operands: Mapping[str, ir.Value],
        signature: contract.Signature | MultiHeadSignature,
        attributes: Mapping[str, Any],
        name: str,
        overload: str,
    ) -> tuple[ir.Value, ...]:
        """A node of one of our operators; its output has the query's type, caches the cache's."""
        values = self._emit(
            op_type,
            signature.arrange(operands),
            name,
            attributes,
            outputs=[f"/{each}" for each in signature.outputs],
            domain=contract.DOMAIN,
            overload=overload,
        )
        output, *caches = values
        set_dtype(output, operands["query"].dtype)
        for cache, kept in zip(caches, ("cache", "rope_cache")):
            set_dtype(cache, operands[kept].dtype)
        return values

    def paged_attention(
        self, operands: Mapping[str, ir.Value], signature: PagedSignature, name: str
    ) -> tuple[ir.Value, ir.Value]:
        """One ``PagedAttention`` of ONNX Runtime: its output, and the cache with the new rows."""
        self._model.opset_imports.setdefault(RUNTIME_DOMAIN, 1)
        output, cache = self._emit(
            PAGED_ATTENTION,
            signature.arrange(operands),
            name,
            signature.attributes(),
            outputs=["/output", "/key_cache_out"],
            domain=RUNTIME_DOMAIN,
        )
        set_dtype(output, operands["query"].dtype)
        set_dtype(cache, operands["key_cache"].dtype)
        return output, cache

    def prefill_crossover(
        self, geometry: MlaGeometry, counted: int, rows: ir.Value, name: str
    ) -> ir.Value:
        """One ``PrefillCrossover`` with its function body, which returns ``counted``."""
        define_crossover(self._model)
        kind = ir.DataType.FLOAT if rows.dtype is None else rows.dtype
        (value,) = self._emit(
            CROSSOVER_OP_TYPE,
            [],
            name,
            crossover_attributes(geometry, counted, kind),
            domain=contract.DOMAIN,
        )
        value.dtype = ir.DataType.INT64
        return value
