"""What a drawn model is to be: what it computes, and how that is written down.

The first choice of every field is the plainest. ``plain(plan)`` computes the same as ``plan``, with
everything in the plainest writing: that is how the writer is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

#: H of keys and values, N, R, V, C, E: no two sizes in a model are equal.
SIZES = {
    "tiny": (3, 5, 4, 7, 11, 13),
    "wide": (2, 9, 6, 5, 8, 17),
    "long": (4, 3, 2, 11, 16, 10),
    "narrow": (5, 4, 8, 3, 7, 12),
    "eights": (3, 16, 8, 7, 11, 13),
    "real": (4, 128, 64, 128, 512, 96),
}

#: What a model computes.
MEANING: dict[str, tuple[str, ...]] = {
    "size": ("tiny", "wide", "long", "narrow"),
    "source": ("hidden", "ids"),
    "norm": ("rms", "none", "tanh", "mean"),
    "query_rank": ("none", "some"),
    "rotary": ("half", "interleaved", "none"),
    "bias": ("none", "value", "key", "both"),
    "mask": ("additive", "none", "boolean", "lengths", "causal", "flag"),
    "fill": ("lowest", "infinite", "large"),
    "sinks": ("none", "some", "one"),
    "gate": ("none", "heads", "wide"),
    "channels": ("none", "keys", "values", "both"),
    "groups": ("one", "two", "apart", "axis", "each"),
    "repeat": ("one", "two"),
    "scale": ("usual", "other"),
    "softmax": ("plain", "guarded", "numbers"),
    "dtype": ("float32", "float16", "float64"),
    "layers": ("one", "two", "shared"),
    "cache": ("latent", "none", "joint", "expanded", "static", "static_joint", "static_expanded"),
}

#: How it is written.
WRITING: dict[str, tuple[str, ...]] = {
    "row_rank": ("b1sr", "bsr", "bs1r"),
    "cache_axes": ("heads", "tokens", "turned", "flat", "first"),
    "present": ("itself", "copy"),
    "put": (
        "list",
        "each",
        "heads",
        "start",
        "elements",
        "elements_each",
        "rows",
        "context",
    ),
    "read": ("whole", "gathered"),
    "source_rows": ("one", "two"),
    "norm_at": ("new", "read"),
    "rotary_at": ("new", "read"),
    "rotary_form": ("parts", "turned", "pairs"),
    "table": ("computed", "gathered", "sliced"),
    "positions": ("input", "shapes"),
    "storage": (
        "joint",
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
    ),
    "place": ("bht", "bth"),
    "k_pe": ("expand", "tile", "interleave", "copies", "zeros", "gathered"),
    "key": ("concat", "rope_first", "assigned", "two_products", "interleaved"),
    "value_pad": ("none", "zeros"),
    "product": (
        "matmul",
        "einsum",
        "bmm",
        "baddbmm",
        "fused_matmul",
        "attention",
        "attention3",
        "multi_head",
        "group_query",
    ),
    "scale_on": ("scores", "divided", "query", "keys", "both", "shape", "products"),
    "mask_at": ("scaled", "unscaled"),
    "exponential": ("softmax", "float32", "by_hand", "no_maximum", "reciprocal", "logarithm"),
    "out": ("matmul", "gemm", "einsum", "each_head"),
    "absorbed": ("no", "two_products", "one_product", "repeated", "scores"),
    "by_shapes": ("no", "yes"),
    "fixed": ("none", "batch", "query"),
    "opset": ("18", "23", "17", "21"),
}

CHOICES = {**MEANING, **WRITING}


@dataclass(frozen=True)
class Plan:
    """One model; see `CHOICES` for what each field may be."""

    size: str = "tiny"
    source: str = "hidden"
    norm: str = "rms"
    query_rank: str = "none"
    rotary: str = "half"
    bias: str = "none"
    mask: str = "additive"
    fill: str = "lowest"
    sinks: str = "none"
    gate: str = "none"
    channels: str = "none"
    groups: str = "one"
    repeat: str = "one"
    scale: str = "usual"
    softmax: str = "plain"
    dtype: str = "float32"
    layers: str = "one"
    cache: str = "latent"
    row_rank: str = "b1sr"
    cache_axes: str = "heads"
    present: str = "itself"
    put: str = "list"
    read: str = "whole"
    source_rows: str = "one"
    norm_at: str = "new"
    rotary_at: str = "new"
    rotary_form: str = "parts"
    table: str = "computed"
    positions: str = "input"
    storage: str = "joint"
    place: str = "bht"
    k_pe: str = "expand"
    key: str = "concat"
    value_pad: str = "none"
    product: str = "matmul"
    scale_on: str = "scores"
    mask_at: str = "scaled"
    exponential: str = "softmax"
    out: str = "matmul"
    absorbed: str = "no"
    by_shapes: str = "no"
    fixed: str = "none"
    opset: str = "18"
    mutations: tuple[str, ...] = ()
    seed: int = 0

    @property
    def static(self) -> bool:
        """Whether caches are buffers that rows are put into by position."""
        return self.cache.startswith("static")

    @property
    def expanded(self) -> bool:
        """Whether keys and values are cached, not rows."""
        return self.cache.endswith("expanded")

    @property
    def grouped(self) -> bool:
        """Whether groups of heads have a latent each."""
        return self.groups != "one"

    @property
    def fused(self) -> bool:
        """Whether one node is all of the attention."""
        return self.product in ("attention", "attention3", "multi_head", "group_query")

    def told(self) -> str:
        """What is not plain, in words."""
        other = [
            f"{each.name}={getattr(self, each.name)!r}"
            for each in fields(self)
            if getattr(self, each.name) != each.default
        ]
        return f"Plan({', '.join(other)})"


def plain(plan: Plan) -> Plan:
    """The same computation in the plainest writing, without mutations; no cache where it can be."""
    usual = {name: choices[0] for name, choices in WRITING.items()}
    if plan.expanded and plan.absorbed == "no":
        usual["absorbed"] = "no"
    return settled(replace(plan, **usual, mutations=()))


Rule = tuple[Callable[[Plan], bool], dict[str, str]]

#: What goes with what: each rule sets fields where its condition holds, in this order.
RULES: tuple[Rule, ...] = (
    (  # its caches are of keys and values, a multiple of eight numbers each, and it is causal
        lambda p: p.product == "group_query" and p.cache != "expanded",
        {"cache": "static_expanded"},
    ),
    (
        lambda p: p.product == "group_query",
        {
            "mask": "causal",
            "fill": "lowest",
            "mask_at": "scaled",
            "positions": "shapes",
            "cache_axes": "heads",
            "put": "each",
            "read": "whole",
            "absorbed": "no",
            "groups": "one",
            "value_pad": "none",
            "opset": "18",
        },
    ),
    (
        lambda p: (
            p.size != "real"
            and (p.product == "group_query" or (p.product == "multi_head" and p.mask == "flag"))
        ),
        {"size": "eights", "groups": "one"},
    ),
    (lambda p: p.product == "group_query" and p.layers == "shared", {"layers": "two"}),
    (lambda p: p.product == "group_query" and p.dtype == "float64", {"dtype": "float32"}),
    (lambda p: not p.static, {"put": "list", "read": "whole"}),
    (lambda p: p.read == "gathered", {"put": "context", "cache_axes": "heads"}),
    (lambda p: p.put == "heads" and not p.expanded, {"put": "each"}),
    (lambda p: p.put == "rows" and p.product == "fused_matmul", {"product": "matmul"}),
    (lambda p: p.layers == "shared" and p.grouped, {"layers": "two"}),
    (
        lambda p: p.groups == "apart" and p.cache.endswith("joint"),
        {"cache": "latent"},
    ),
    (lambda p: p.groups == "apart", {"norm_at": "new"}),
    (lambda p: p.cache == "none", {"norm_at": "new", "rotary_at": "new", "cache_axes": "heads"}),
    (lambda p: p.norm == "none", {"norm_at": "new"}),
    (lambda p: p.expanded, {"norm_at": "new", "rotary_at": "new"}),
    (lambda p: p.static, {"mask": "none", "positions": "input", "rotary_at": "new"}),
    (
        lambda p: p.rotary == "none",
        {
            "rotary_at": "new",
            "rotary_form": "parts",
            "table": "computed",
            "key": "concat",
            "k_pe": "expand",
            "source_rows": "one",
            "positions": "shapes",
        },
    ),
    (lambda p: p.rotary != "none" and p.table == "sliced", {"positions": "shapes"}),
    (lambda p: p.rotary == "half" and p.rotary_form == "pairs", {"rotary_form": "parts"}),
    (lambda p: p.rotary == "interleaved" and p.rotary_form == "turned", {"rotary_form": "pairs"}),
    (lambda p: p.positions == "shapes" and p.rotary_at == "read", {"table": "computed"}),
    (lambda p: p.grouped and p.size != "real", {"size": "long"}),
    (lambda p: p.grouped, {"repeat": "one", "absorbed": "no"}),
    (
        lambda p: p.grouped and p.storage not in ("joint", "separate", "einsum"),
        {"storage": "joint"},
    ),
    (lambda p: p.absorbed != "no" and p.expanded, {"cache": "latent"}),
    (
        lambda p: p.absorbed != "no",
        {
            "storage": "einsum",
            "key": "concat",
            "k_pe": "expand",
            "value_pad": "none",
            "place": "bht",
            "bias": "none",
            "channels": "none",
            "repeat": "one",
            "groups": "one",
        },
    ),
    (
        lambda p: p.absorbed == "two_products" and (p.fused or p.product == "fused_matmul"),
        {"product": "matmul"},
    ),
    (lambda p: p.absorbed == "scores" and p.fused, {"product": "matmul"}),
    (lambda p: p.absorbed not in ("no", "repeated") and p.product == "baddbmm", {"product": "bmm"}),
    (
        lambda p: (
            p.absorbed in ("one_product", "repeated", "scores")
            and p.product in ("multi_head", "attention3")
        ),
        {"product": "attention"},
    ),
    (
        lambda p: (
            p.mask == "flag"
            and not p.static
            and p.product not in ("attention", "attention3", "multi_head")
        ),
        {"product": "attention"},
    ),
    (lambda p: p.mask == "flag" and p.absorbed in ("two_products", "scores"), {"mask": "none"}),
    (lambda p: p.fused and p.key == "two_products", {"key": "concat"}),
    (lambda p: p.key == "two_products", {"k_pe": "expand"}),
    (lambda p: p.expanded and p.key == "two_products", {"key": "concat"}),
    (lambda p: p.static and p.product in ("attention3", "multi_head"), {"product": "attention"}),
    (
        lambda p: p.fused,
        {
            "sinks": "none",
            "softmax": "plain",
            "exponential": "softmax",
            "scale_on": "scores",
            "mask_at": "scaled",
        },
    ),
    (lambda p: p.fused and p.mask == "boolean", {"fill": "infinite"}),
    (lambda p: p.product in ("attention", "attention3"), {"opset": "23"}),
    (lambda p: p.product == "multi_head", {"opset": "18", "dtype": "float32", "repeat": "one"}),
    (lambda p: p.product == "multi_head" and p.mask == "boolean", {"mask": "additive"}),
    (lambda p: p.product in ("baddbmm", "fused_matmul"), {"scale_on": "scores"}),
    (lambda p: p.product == "baddbmm", {"mask_at": "scaled"}),
    (lambda p: p.product == "baddbmm" and p.key == "two_products", {"product": "bmm"}),
    (lambda p: p.product == "fused_matmul" and p.dtype == "float64", {"dtype": "float32"}),
    (lambda p: p.product == "fused_matmul", {"opset": "18"}),
    (lambda p: p.put == "rows", {"opset": "24"}),
    (lambda p: p.mask not in ("boolean", "lengths", "causal") and not p.static, {"fill": "lowest"}),
    (lambda p: p.mask in ("none", "additive") and not p.static, {"mask_at": "scaled"}),
    (lambda p: p.fill == "large", {"mask_at": "scaled"}),
    (
        lambda p: p.exponential in ("by_hand", "no_maximum", "reciprocal"),
        {"softmax": "plain", "sinks": "none"},
    ),
    (lambda p: p.exponential == "no_maximum", {"dtype": "float32"}),
    (lambda p: p.cache == "joint" or p.cache == "static_joint", {"rotary_at": "new"}),
    (lambda p: p.layers != "one" and p.fill == "infinite", {"layers": "one"}),
    (lambda p: p.out == "each_head" and p.gate == "wide", {"out": "matmul"}),
    (  # caches that change are filled by calls of several lengths
        lambda p: p.fixed == "query" and (p.static or p.expanded),
        {"fixed": "none"},
    ),
    (  # the operators before opset 20 know no infinity of 16 bits
        lambda p: p.softmax == "numbers" and p.dtype == "float16",
        {"softmax": "guarded"},
    ),
    (lambda p: p.storage == "half" and p.dtype == "float16", {"storage": "joint"}),
    (lambda p: p.storage == "conv" and p.dtype == "float64", {"storage": "joint"}),
)


def settled(plan: Plan) -> Plan:
    """The plan with choices that do not go together set right."""
    for condition, change in RULES:
        if condition(plan):
            plan = replace(plan, **change)
    return plan
