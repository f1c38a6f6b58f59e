"""Latent attention as other people write it, each as a plan: published code and export styles."""

from __future__ import annotations

from dataclasses import replace

from tests.axes.plan import CHOICES, Plan

DEEPSEEK = Plan(
    source="ids",
    query_rank="some",
    rotary="interleaved",
    rotary_form="pairs",
    row_rank="bsr",
    place="bth",
    product="einsum",
    exponential="float32",
    cache_axes="tokens",
)
"""DeepSeek's own model: einsum, buffers of `[B, M, ...]`, rotary embedding of complex numbers."""

QUALCOMM = Plan(
    row_rank="b1sr",
    storage="separate_of_one",
    cache="static",
    put="context",
    read="gathered",
    exponential="float32",
    mask="boolean",
    fill="large",
    k_pe="interleave",
)
"""efficient-transformers: k_up and v_up of `[1, C, H N]`, rows put into caches by position and read
from there by local functions."""

FLAT = Plan(row_rank="bsr", cache_axes="tokens")
"""Rows `[B, T, C]` throughout."""

PUBLISHED: dict[str, Plan] = {
    "deepseek naive": replace(DEEPSEEK, cache="static_expanded"),
    "deepseek naive prompt": replace(DEEPSEEK, cache="none", mask="causal", fill="infinite"),
    "deepseek absorb": replace(DEEPSEEK, cache="static", absorbed="two_products"),
    "deepseek absorb prompt": replace(
        DEEPSEEK, cache="none", mask="causal", fill="infinite", absorbed="two_products"
    ),
    "litgpt": Plan(
        source="ids",
        query_rank="some",
        row_rank="bsr",
        rotary_form="turned",
        table="sliced",
        cache="none",
        mask="causal",
        scale_on="both",
    ),
    "litgpt buffers": Plan(
        source="ids",
        query_rank="some",
        rotary_form="turned",
        table="gathered",
        cache="static_expanded",
        scale_on="both",
    ),
    "torchtitan": Plan(
        source="ids",
        rotary="interleaved",
        rotary_form="pairs",
        row_rank="bs1r",
        place="bth",
        table="sliced",
        cache="none",
        mask="causal",
        scale_on="both",
    ),
    "fla": Plan(
        rotary_form="turned",
        query_rank="some",
        row_rank="bs1r",
        place="bth",
        k_pe="interleave",
        cache="expanded",
        cache_axes="flat",
        mask="lengths",
    ),
    "x-transformers": Plan(
        rotary="none",
        norm="mean",
        row_rank="bsr",
        storage="separate",
        product="einsum",
        mask="boolean",
        fill="infinite",
        cache="latent",
        cache_axes="tokens",
    ),
    "mobius": Plan(
        rotary="interleaved",
        query_rank="some",
        row_rank="bsr",
        place="bth",
        product="attention3",
        cache="expanded",
        by_shapes="yes",
    ),
    "mobius latent": Plan(product="attention3", place="bth", cache="latent", opset="23"),
    "qualcomm": QUALCOMM,
    "qualcomm absorbed": replace(QUALCOMM, absorbed="two_products"),
    "qualcomm absorbed at once": replace(QUALCOMM, absorbed="one_product"),
    "onnxruntime fused": Plan(product="multi_head", mask="additive", cache="expanded"),
    "onnxruntime optimized": Plan(product="fused_matmul"),
    "transformers eager": Plan(
        source="ids", exponential="float32", key="assigned", by_shapes="yes"
    ),
    "transformers flash": Plan(value_pad="zeros", product="attention"),
}

OTHERS: dict[str, Plan] = {
    **{
        f"weights {kind}": replace(FLAT, storage=kind)
        for kind in (
            "keys_then_values",
            "separate",
            "separate_of_one",
            "slices",
            "split",
            "einsum",
            "matmul3",
            "gemm",
            "conv",
            "lora_weight",
            "lora_rows",
            "turned",
            "half",
            "from_left",
        )
    },
    **{f"channels {kind}": replace(FLAT, channels=kind) for kind in ("keys", "values", "both")},
    **{f"bias {kind}": replace(FLAT, bias=kind) for kind in ("key", "value", "both")},
    **{f"groups {kind}": replace(FLAT, groups="two", storage=kind) for kind in ("joint", "einsum")},
    "groups of an axis": replace(FLAT, groups="axis", cache="none"),
    "groups of an axis, cached": replace(FLAT, groups="axis", place="bth"),
    "groups apart": replace(FLAT, groups="apart"),
    "groups apart, expanded cache": replace(FLAT, groups="apart", cache="expanded"),
    "groups in a buffer": replace(FLAT, groups="two", cache="static"),
    **{
        f"latent cache {kind}": Plan(cache_axes=kind)
        for kind in (
            "heads",
            "tokens",
            "turned",
            "flat",
            "first",
        )
    },
    **{
        f"joint cache {kind}": Plan(cache="joint", cache_axes=kind)
        for kind in (
            "heads",
            "tokens",
            "turned",
            "flat",
        )
    },
    **{
        f"expanded cache {kind}": Plan(cache="expanded", cache_axes=kind)
        for kind in (
            "heads",
            "tokens",
            "turned",
            "flat",
            "first",
        )
    },
    **{
        f"buffers {kind}": Plan(cache="static", cache_axes=kind, put=put)
        for kind, put in (
            ("heads", "list"),
            ("tokens", "each"),
        )
    },
    **{
        f"buffers of keys {kind}": Plan(cache="static_expanded", cache_axes=kind, put=put)
        for kind, put in (("heads", "list"), ("tokens", "each"))
    },
    **{
        f"k_pe {kind}": Plan(k_pe=kind, place=place)
        for kind, place in (
            ("tile", "bht"),
            ("interleave", "bth"),
            ("copies", "bht"),
            ("zeros", "bht"),
            ("gathered", "bht"),
            ("expand", "bth"),
        )
    },
    **{
        f"key {kind}": Plan(key=kind)
        for kind in (
            "rope_first",
            "assigned",
            "two_products",
            "interleaved",
        )
    },
    **{
        f"product {kind}": Plan(product=kind)
        for kind in (
            "einsum",
            "bmm",
            "baddbmm",
            "fused_matmul",
            "attention",
            "attention3",
            "multi_head",
            "group_query",
        )
    },
    **{
        f"scale {kind}": Plan(scale_on=kind)
        for kind in ("divided", "query", "keys", "both", "shape")
    },
    **{
        f"mask {kind} {fill}": Plan(mask=kind, fill=fill)
        for kind, fill in (
            ("none", "lowest"),
            ("boolean", "infinite"),
            ("boolean", "lowest"),
            ("lengths", "lowest"),
            ("causal", "infinite"),
            ("causal", "large"),
        )
    },
    "group_query, growing": Plan(product="group_query", cache="expanded"),
    **{
        f"causal by flag, {product}": Plan(mask="flag", product=product, cache="expanded", **others)
        for product, others in (
            ("attention", {}),
            ("attention3", {"repeat": "two"}),
            ("multi_head", {}),
        )
    },
    **{
        f"mask {kind} before the scale": Plan(mask=kind, fill=fill, mask_at="unscaled")
        for kind, fill in (("boolean", "infinite"), ("lengths", "lowest"), ("causal", "infinite"))
    },
    **{f"softmax {kind}": Plan(exponential=kind) for kind in CHOICES["exponential"][1:]},
    **{
        f"products scaled {kind}": replace(FLAT, scale_on="products", **{kind: "two_products"})
        for kind in ("key", "absorbed")
    },
    **{
        f"absorbed {kind} {product}": replace(FLAT, absorbed=kind, product=product)
        for kind, product in (
            ("two_products", "matmul"),
            ("two_products", "einsum"),
            ("one_product", "matmul"),
            ("one_product", "einsum"),
            ("one_product", "attention"),
            ("repeated", "attention"),
            ("scores", "matmul"),
        )
    },
    "heads shared": Plan(repeat="two"),
    "heads shared by an operator": Plan(repeat="two", product="attention"),
    "values padded": Plan(value_pad="zeros"),
    "values padded, expanded cache": Plan(value_pad="zeros", cache="expanded"),
    "norm when read": Plan(norm_at="read"),
    "rotary when read": Plan(rotary_at="read"),
    "rotary by table": Plan(table="sliced", cache="none"),
    "tokens before heads": Plan(row_rank="bs1r", place="bth"),
    "sinks": Plan(sinks="some"),
    "one sink for all": Plan(sinks="one"),
    "softmax with nan_to_num": Plan(softmax="numbers"),
    "gates": Plan(gate="heads", out="einsum"),
    "16 bits": replace(FLAT, dtype="float16", exponential="float32"),
    "64 bits": replace(FLAT, dtype="float64"),
    "two layers": Plan(layers="two", out="gemm"),
}
