"""Attention of queries to keys and values: whole keys, products of parts, or absorbed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from tests.axes.keys import KeysAndValues
from tests.axes.masks import Masks
from tests.axes.model import Model, Rows
from tests.axes.rotary import past_of
from tests.axes.tape import Value, axes

Join = Callable[[Value, str, str], Value]


@dataclass
class Attention:
    """From the parts of the query and the rows to the context of each head."""

    model: Model
    region: KeysAndValues

    @property
    def scale(self) -> float:
        """What scores are multiplied with."""
        usual = 1 / math.sqrt(self.model.sizes["k"])
        return usual if self.model.plan.scale == "usual" else 0.37

    # Where keys and values come from

    def attended(self, query: list[Value], rows: Rows) -> Value:
        """Context `bhsv` or `bshv` from rows of all keys in sight."""
        self.model.kept = ("rows", rows)
        if self.model.plan.absorbed != "no":
            return self._absorbed(query, rows)
        keys, value = self.region.made(rows, "t")
        if self.model.plan.key == "two_products" and len(keys) == 2:
            query = [self.model.at("query", each) for each in query]
            keys = [self._repeated(self.model.at("key", each)) for each in keys]
            return self._core(query, keys, self._repeated(value))
        whole, key = self._put_together(query, keys, "t")
        return self._to_context(whole, key, value)

    def again(self, query: list[Value]) -> Value:
        """Attention to what the layer before attended to."""
        kind, *kept = self.model.kept
        if kind == "rows":
            return self.attended(query, kept[0])
        key, value = kept
        (whole,) = self._put_together(query, [], "s")
        return self._to_context(whole, key, value)

    def cached(self, query: list[Value], rows: Rows, join: Join) -> Value:
        """The same for models that cache keys and values themselves."""
        keys, value = self.region.made(rows, "s")
        whole, key = self._put_together(query, keys, "s")
        if self._takes_past():
            return self._with_past(whole, key, value)
        key, value = join(key, "key", "k"), join(value, "value", "v")
        self.model.kept = ("keys", key, value)
        return self._to_context(whole, key, value)

    def _put_together(self, query: list[Value], keys: list[Value], t: str) -> tuple[Value, ...]:
        """Whole queries, and keys where given, of parts that are in the same order in both."""
        tape, kind = self.model.tape, self.model.plan.key
        if not self.model.has_rotary:
            return tuple(_renamed(each[0], "n", "k") for each in (query, keys) if each)
        order, letters = (1, "nr")
        if kind == "rope_first":
            order, letters = (-1, "rn")
        whole = [tape.joined(each[::order], letters, "k") for each in (query, keys) if each]
        if kind == "assigned" and keys:
            whole[1] = self._assigned(keys, t)
        if kind == "interleaved":
            whole = [tape.along("Gather", each, self._order(), axis=3) for each in whole]
        return tuple(whole)

    def _order(self) -> str:
        """A stored order of the width that queries and keys are both put into."""
        width = self.model.sizes["k"]
        step = 2 if width % 2 else -1
        return self.model.tape.ints(*(place * step % width for place in range(width)))

    def _assigned(self, keys: list[Value], t: str) -> Value:
        """Both parts are put into an empty tensor."""
        tape = self.model.tape
        shape = tuple(axis.replace("n", "k") for axis in keys[0].axes)
        for letter in keys[0].letters:
            tape.size(letter, keys[0])
        zero = np.zeros(1, tape.dtype)
        empty = tape.op("ConstantOfShape", tape.sizes_of(shape), value=_tensor(zero))
        data = tape.op("Transpose", empty, perm=[3, 1, 2, 0])
        start = 0
        for part in keys:
            end = start + self.model.sizes[part.axes[3]]
            places = tape.array(np.arange(start, end)[:, None])
            turned = tape.op("Transpose", part.name, perm=[3, 1, 2, 0])
            data, start = tape.op("ScatterND", data, places, turned), end
        return Value(tape.op("Transpose", data, perm=[3, 1, 2, 0]), shape)

    def _to_context(self, query: Value, key: Value, value: Value) -> Value:
        model, tape = self.model, self.model.tape
        query, key = model.at("query", query), model.at("key", key)
        value = model.at("kept_value", value)
        model.returned("keys", key)
        model.key = key
        padded = model.plan.value_pad == "zeros"
        if padded:
            pads = tape.ints(0, 0, 0, 0, 0, 0, 0, 3)
            value = _renamed(tape.along("Pad", value, pads), "v", "z")
        if model.plan.product == "attention":
            context = self._fused(query, key, value)
        elif model.plan.product in ("attention3", "multi_head"):
            context = self._fused_flat(query, key, self._repeated(value))
        else:
            context = self._core([query], [self._repeated(key)], self._repeated(value))
        if padded:
            ends = (tape.ints(0), tape.ints(model.sizes["v"]), tape.ints(-1))
            flat = tape.split(context)
            context = _renamed(tape.along("Slice", flat, *ends), "z", "v")
        return context

    def _repeated(self, value: Value) -> Value:
        """Heads of keys or values, as many times as queries share them."""
        if "j" not in value.axes:
            return value
        model, tape, place = self.model, self.model.tape, value.place("j")
        flat = (*value.axes[:place], "h", *value.axes[place + 1 :])
        if model.plan.repeat == "one" or model.plan.product in ("attention3",):
            return Value(value.name, flat if model.plan.repeat == "one" else value.axes)
        more = tape.op("Unsqueeze", value.name, tape.ints(place + 1))
        shape = [1] * 5
        shape[place + 1] = 2
        wide = tape.op("Expand", more, tape.ints(*shape))
        sizes = [0, -1, -1, model.sizes[value.axes[3]]]
        sizes[place] = model.sizes["h"]
        return Value(tape.op("Reshape", wide, tape.ints(*sizes)), flat)

    # One node

    def _fused(self, query: Value, key: Value, value: Value) -> Value:
        tape = self.model.tape
        letter = value.axes[3]
        heads = "h" if "h" in key.axes else "j" if "j" in key.axes else "1"
        operands = [
            tape.arranged(query, ("b", "h", "s", query.axes[3])),
            tape.arranged(key, ("b", heads, "t", key.axes[3])),
            tape.arranged(value, ("b", heads, "t", letter)),
        ]
        names = [each.name for each in operands]
        mask = Masks(self.model).for_fused()
        names += [mask] if mask else []
        made = tape.op("Attention", *names, scale=self.scale, is_causal=self._flag())
        return self.model.at("context", Value(made, ("b", "h", "s", letter)))

    def _fused_flat(self, query: Value, key: Value, value: Value) -> Value:
        """Operands of three axes, heads side by side in the last."""
        model, tape = self.model, self.model.tape
        letter, own = value.axes[3], "h" if "h" in value.axes else "j"
        heads = "h" if "h" in key.axes else "j"
        names = [
            tape.arranged(query, axes("bs(hk)")).name,
            tape.arranged(key, axes(f"bt({heads}k)")).name,
            tape.arranged(value, axes(f"bt({own}{letter})")).name,
        ]
        mask = Masks(model).for_fused()
        if model.plan.product == "attention3":
            counts = {"q_num_heads": model.sizes["h"], "kv_num_heads": model.sizes["j"]}
            names += [mask] if mask else []
            made = tape.op("Attention", *names, scale=self.scale, is_causal=self._flag(), **counts)
        else:
            extra = ["", "", mask] if mask else []
            made = tape.many(
                "MultiHeadAttention",
                1,
                *names,
                *extra,
                domain="com.microsoft",
                num_heads=model.sizes["h"],
                unidirectional=self._flag(),
                scale=self.scale,
            )[0]
        return model.at(
            "context", tape.arranged(Value(made, ("b", "s", f"h{letter}")), f"bsh{letter}")
        )

    def _flag(self) -> int:
        return int(self.model.plan.mask == "flag" and not self.model.plan.static)

    def _takes_past(self) -> bool:
        """Whether the operator itself joins the caches."""
        plan = self.model.plan
        if plan.layers == "shared":
            return False
        own = plan.product in ("attention", "attention3")
        own |= plan.product == "multi_head" and plan.mask == "flag"
        fits = plan.cache_axes == "heads" and plan.value_pad == "none"
        return plan.product == "group_query" or (own and fits and not plan.static)

    def _with_past(self, query: Value, key: Value, value: Value) -> Value:
        """Past keys and values that the operator joins new ones to, or puts them into."""
        model, tape = self.model, self.model.tape
        query, key = model.at("query", query), model.at("key", key)
        ours = model.plan.product in ("multi_head", "group_query")
        letter = "k" if ours else "v"  # operators of ONNX Runtime want values as wide as keys
        value = self._widened(value) if ours else value
        flat = model.plan.product != "attention"
        shapes = ("bs(hk)", "bs(jk)", f"bs(j{letter})") if flat else ("bhsk", "bjsk", "bjsv")
        names = [
            tape.arranged(each, shape).name for each, shape in zip((query, key, value), shapes)
        ]
        pasts = []
        for word, width in (("key", "k"), ("value", letter)):
            shape = model.shape(axes(f"bjt{width}"), "P")
            pasts.append(tape.input(f"past.{model.layer}.{word}", shape))
        made = self._by_operator(names, pasts)
        for place, (word, width) in enumerate((("key", "k"), ("value", letter)), 1):
            name = f"present.{model.layer}.{word}"
            tape.nodes[-1].output[place] = name
            tape.declare(name, model.shape(axes(f"bjt{width}"), "T"))
        context = Value(made, axes(f"bs(h{letter})" if flat else "bhsv"))
        context = tape.arranged(context, f"bhs{letter}")
        return model.at("context", self._narrowed(context) if ours else context)

    def _widened(self, value: Value) -> Value:
        """Values with zeros to the width of keys."""
        tape, sizes = self.model.tape, self.model.sizes
        pads = tape.ints(0, 0, 0, 0, 0, 0, 0, sizes["k"] - sizes["v"])
        return _renamed(tape.along("Pad", value, pads), "v", "k")

    def _narrowed(self, context: Value) -> Value:
        tape = self.model.tape
        ends = (tape.ints(0), tape.ints(self.model.sizes["v"]), tape.ints(-1))
        return _renamed(tape.along("Slice", context, *ends), "k", "v")

    def _by_operator(self, names: list[str], pasts: list[str]) -> str:
        """The operator of the plan, with its caches; the context."""
        model, tape, kind = self.model, self.model.tape, self.model.plan.product
        heads, shared = model.sizes["h"], model.sizes["j"]
        contrib = {"domain": "com.microsoft", "num_heads": heads, "scale": self.scale}
        if kind == "multi_head":
            inputs, flag = (*names, "", "", "", *pasts), self._flag()
            return tape.many("MultiHeadAttention", 3, *inputs, unidirectional=flag, **contrib)[0]
        if kind == "group_query":
            inputs = (*names, *pasts, *self._lengths())
            return tape.many("GroupQueryAttention", 3, *inputs, kv_num_heads=shared, **contrib)[0]
        counts = {"q_num_heads": heads, "kv_num_heads": shared} if kind == "attention3" else {}
        inputs = (*names, Masks(model).for_fused() or "", *pasts)
        flag = {"is_causal": self._flag(), "scale": self.scale}
        return tape.many("Attention", 3, *inputs, **flag, **counts)[0]

    def _lengths(self) -> tuple[str, str]:
        """The place of each sequence's last token, and how many the longest has."""
        tape = self.model.tape
        if not self.model.plan.static:
            total = tape.op("Add", past_of(self.model), tape.size("s"))
            last = tape.op("Expand", tape.op("Sub", total, tape.ints(1)), tape.size("b"))
            return tape.cast(last, np.int32), tape.cast(total, np.int32)
        places = tape.input("position_ids", ("B", "S"), TensorProto.INT64)
        last = tape.op("Slice", places, tape.ints(-1), tape.ints(2**62), tape.ints(1))
        flat = tape.op("Squeeze", last, tape.ints(1))
        total = tape.op("Add", tape.op("ReduceMax", flat, tape.ints(0), keepdims=0), tape.whole(1))
        return tape.cast(flat, np.int32), tape.cast(total, np.int32)

    # Scores, softmax and context in nodes of their own

    def _core(self, query: list[Value], keys: list[Value], value: Value) -> Value:
        model = self.model
        query, keys = self._scaled_before(query, keys)
        if len(keys) > 1:
            keys = [*keys[:-1], model.at("last_key", keys[-1])]
        products = [self._scaled_product(*each) for each in zip(query, keys)]
        if len(products) > 1:
            products[-1] = model.at("product", products[-1])
        scores = self._sum(products)
        scores = self._scaled_after(scores, query)
        scores = model.at("masked", self._after_masks(scores))
        probs = model.at("probs", self._softmax(scores))
        model.returned("probs", probs)
        return model.at("context", self._weighted(probs, value))

    def _sum(self, scores: Sequence[Value]) -> Value:
        first = scores[0]
        for other in scores[1:]:
            word = "Sub" if self.model.mutated("subtracted") else "Add"
            first = self.model.tape.along(word, first, other.name)
        return first

    def _scaled_product(self, query: Value, key: Value) -> Value:
        """Scores of one part, with the scale if every part has it."""
        scores = self._product(query, key)
        if self.model.plan.scale_on != "products":
            return scores
        return self.model.tape.along("Mul", scores, self.model.tape.number(self.scale))

    def _scaled_before(
        self, query: list[Value], keys: list[Value]
    ) -> tuple[list[Value], list[Value]]:
        tape, on = self.model.tape, self.model.plan.scale_on
        if on in ("query", "both"):
            factor = self.scale if on == "query" else math.sqrt(self.scale)
            query = [tape.along("Mul", each, tape.number(factor)) for each in query]
        if on in ("keys", "both"):
            factor = self.scale if on == "keys" else math.sqrt(self.scale)
            keys = [tape.along("Mul", each, tape.number(factor)) for each in keys]
        return query, keys

    def _product(self, query: Value, key: Value) -> Value:
        """Scores `bhst` or `(bh)st` of one part."""
        tape, kind = self.model.tape, self.model.plan.product
        letter = query.axes[3]
        heads = "h" if "h" in key.axes else "1"
        if kind == "einsum":
            key = tape.split(key)
            equation = f"{''.join(query.axes)},{''.join(key.axes)}->bhst"
            return Value(tape.op("Einsum", query.name, key.name, equation=equation), tuple("bhst"))
        query = tape.arranged(query, f"bhs{letter}")
        if kind == "fused_matmul":
            key = tape.arranged(key, ("b", heads, "t", letter))
            names = (query.name, key.name)
            made = tape.many(
                "FusedMatMul", 1, *names, domain="com.microsoft", transB=1, alpha=self.scale
            )
            return Value(made[0], tuple("bhst"))
        key = tape.arranged(key, ("b", heads, letter, "t"))
        if kind in ("bmm", "baddbmm") and heads == "h":
            query, key = (
                tape.arranged(query, f"(bh)s{letter}"),
                tape.arranged(key, f"(bh){letter}t"),
            )
            return Value(tape.op("MatMul", query.name, key.name), ("bh", "s", "t"))
        return Value(tape.op("MatMul", query.name, key.name), tuple("bhst"))

    def _scaled_after(self, scores: Value, query: list[Value]) -> Value:
        """Scaled, or masked first and scaled then."""
        model, tape, plan = self.model, self.model.tape, self.model.plan
        masks = Masks(model)
        if plan.mask_at == "unscaled":
            scores = masks.applied(tape.arranged(scores, "bhst"))
        if plan.product != "fused_matmul":
            scores = self._times_scale(scores, query)
        if plan.product == "baddbmm" and len(scores.axes) == 3:
            scores = masks.added_flat(scores)
        return model.at("scores", tape.arranged(scores, "bhst"))

    def _after_masks(self, scores: Value) -> Value:
        plan = self.model.plan
        masks = Masks(self.model)
        done = plan.mask_at == "unscaled" or (plan.product == "baddbmm" and masks.adds_flat())
        return scores if done else masks.applied(scores)

    def _times_scale(self, scores: Value, query: list[Value]) -> Value:
        tape, on = self.model.tape, self.model.plan.scale_on
        if on == "scores":
            return tape.along("Mul", scores, tape.number(self.scale))
        if on == "divided":
            return tape.along("Div", scores, tape.number(1 / self.scale))
        if on != "shape":
            return scores
        if self.model.plan.scale == "other" or len(query) == 2 or query[0].axes[3] != "k":
            width = tape.array(np.array([1 / self.scale**2], np.float32))
        else:
            width = tape.cast(tape.size_at(query[0].name, 3), np.float32)
        root = tape.op("Sqrt", width)
        return tape.along("Div", scores, tape.cast(root, tape.dtype))

    def _softmax(self, scores: Value) -> Value:
        model, tape, plan = self.model, self.model.tape, self.model.plan
        name = scores.name
        wide = plan.exponential == "float32" and plan.dtype != "float64"
        if wide:
            name = tape.cast(name, np.float32)
        if plan.sinks != "none":
            name = self._with_sinks(name, scores, np.float32 if wide else tape.dtype)
        axis = 2 if model.mutated("softmax_axis") else -1
        name = self._normalised(name, axis, np.float32 if wide else tape.dtype)
        if plan.sinks != "none":
            name = tape.op("Slice", name, tape.ints(0), tape.ints(-1), tape.ints(3))
        if plan.softmax != "plain":
            name = self._without_nan(name, np.float32 if wide else tape.dtype)
        return Value(tape.cast(name, tape.dtype) if wide else name, scores.axes)

    def _without_nan(self, name: str, dtype: object) -> str:
        """0 where it is not a number; as `nan_to_num` is exported, other numbers for infinite."""
        tape, zero = self.model.tape, self.model.tape.number(0.0, dtype)
        made = tape.op("Where", tape.op("IsNaN", name), zero, name)
        if self.model.plan.softmax == "guarded":
            return made
        infinite = tape.op("And", tape.op("IsInf", name), tape.op("Greater", name, zero))
        most = np.finfo(np.float16).max
        return tape.op("Where", infinite, tape.number(most, dtype), made)

    def _normalised(self, name: str, axis: int, dtype: object) -> str:
        """Softmax, in nodes of its own or not."""
        model, tape, kind = self.model, self.model.tape, self.model.plan.exponential
        if kind == "logarithm":
            return tape.op("Exp", tape.op("LogSoftmax", name, axis=axis))
        if kind not in ("by_hand", "no_maximum", "reciprocal"):
            return tape.op("Softmax", name, axis=axis)
        if kind != "no_maximum":
            along = 2 if model.mutated("maximum") else axis
            name = tape.op("Sub", name, tape.reduced("ReduceMax", name, along))
        name = tape.op("Exp", name)
        total = tape.reduced("ReduceSum", name, axis)
        if model.mutated("denominator"):
            total = tape.op("Add", total, tape.number(1.0, dtype))
        if kind == "reciprocal":
            return tape.op("Mul", name, tape.op("Reciprocal", total))
        return tape.op("Div", name, total)

    def _with_sinks(self, name: str, scores: Value, dtype: object) -> str:
        """One more column, the same for every query of a head."""
        model, tape = self.model, self.model.tape
        heads = model.sizes["h"]
        drawn = model.drawn("sinks", heads).reshape(1, heads, 1, 1).astype(dtype)
        drawn = drawn[:, :1] if model.plan.sinks == "one" else drawn
        sinks = tape.array(drawn, model.named("sinks"))
        shape = tape.op(
            "Concat", tape.size("b"), tape.ints(heads), tape.size("s"), tape.ints(1), axis=0
        )
        column = Value(tape.op("Expand", sinks, shape), ("b", "h", "s", "1"))
        return tape.op("Concat", name, model.at("sinks", column).name, axis=3)

    def _weighted(self, probs: Value, value: Value) -> Value:
        """Context of each head."""
        tape, kind, letter = self.model.tape, self.model.plan.product, value.axes[-1]
        heads = "h" if "h" in value.axes else "1"
        if kind == "einsum":
            value = tape.split(value)
            target = f"bhs{letter}" if self.model.plan.place == "bht" else f"bsh{letter}"
            equation = f"bhst,{''.join(value.axes)}->{target}"
            return Value(
                tape.op("Einsum", probs.name, value.name, equation=equation), tuple(target)
            )
        if kind in ("bmm", "baddbmm") and heads == "h":
            flat, rows = tape.arranged(probs, "(bh)st"), tape.arranged(value, f"(bh)t{letter}")
            made = Value(tape.op("MatMul", flat.name, rows.name), ("bh", "s", letter))
            return tape.arranged(made, f"bhs{letter}")
        rows = tape.arranged(value, ("b", heads, "t", letter))
        return Value(tape.op("MatMul", probs.name, rows.name), ("b", "h", "s", letter))

    # Absorbed by hand

    def _absorbed(self, query: list[Value], rows: Rows) -> Value:
        model, tape, kind = self.model, self.model.tape, self.model.plan.absorbed
        w_uk, w_uv = self.region.weights()
        stored = tape.weight(w_uk, model.named("w_uk"))
        latent_query = self._by_heads(query[0], stored, "hnc", "c")
        latent_query, *others = [model.at("query", each) for each in (latent_query, *query[1:])]
        latent, rope = (
            tape.arranged(rows.latent, "b1tc"),
            rows.rope and tape.arranged(rows.rope, "b1tr"),
        )
        parts = [latent] if rope is None else [latent, rope]
        queries = [latent_query, *others]
        if kind in ("one_product", "repeated") and rope is not None:
            queries = [tape.joined([latent_query, *others], "cr", "l")]
            parts = [tape.joined(parts, "cr", "l")]
        if kind == "repeated":
            parts, latent = [self._to_heads(each) for each in parts], self._to_heads(latent)
        if kind == "scores":
            value = self._repeated(self.region.values_of(Rows(rows.latent, None), "t"))
            return self._core(queries, parts, value)
        if model.plan.fused:
            context = self._fused(queries[0], parts[0], latent)
        else:
            context = self._core(queries, parts, latent)
        up = tape.weight(w_uv, model.named("w_uv"))
        return self._by_heads(context, up, "hvc", "v")

    def _by_heads(self, value: Value, stored: str, letters: str, result: str) -> Value:
        """Each head times its own matrix."""
        tape = self.model.tape
        value = tape.split(value)
        if self.model.plan.product == "einsum":
            target = "".join(value.axes[:3]) + result
            equation = f"{''.join(value.axes)},{letters}->{target}"
            return Value(tape.op("Einsum", value.name, stored, equation=equation), tuple(target))
        value = tape.arranged(value, f"bhs{value.axes[3]}")
        if result == letters[1]:
            stored = tape.op("Transpose", stored, perm=[0, 2, 1])
        return Value(tape.op("MatMul", value.name, stored), ("b", "h", "s", result))

    def _to_heads(self, rows: Value) -> Value:
        tape = self.model.tape
        shape = tape.ints(1, self.model.sizes["h"], 1, 1)
        letter = rows.axes[3]
        return Value(tape.op("Expand", rows.name, shape), ("b", "h", "t", letter))


def _renamed(value: Value, old: str, new: str) -> Value:
    return Value(value.name, tuple(axis.replace(old, new) for axis in value.axes))


def _tensor(content: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> TensorProto:
    from onnx import numpy_helper

    return numpy_helper.from_array(content)
