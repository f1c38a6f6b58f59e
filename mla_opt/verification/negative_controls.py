"""Copies of the optimized model with one thing wrong, which verification must notice.

A parity check that passes says nothing until it is known to fail where it should. Each control
breaks every site at once, at the values that ``mla_opt.sites`` names::

    scale    query ── Mul(1/√(C+R) / scale) ──> attention     the operator's default scale
    rope     query ── Gather(swap halves of R) ──> attention   the other rotary layout
    heads    w_uk [H, N, C] rolled by one along H              a neighbour's matrix

Nothing else is needed, so that it makes no difference whether the operator is fused or inlined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.operator.body_tape import CAST_LIKE_SINCE
from mla_opt.verification.site_records import METADATA_KEY, SiteRecord

#: Nearer to the operator's default than this, the right scale is the wrong one.
SAME_SCALE = 1e-3


@dataclass(frozen=True, slots=True)
class Control:
    """One way to break a site.

    Attributes:
        name: short and stable.
        breaks: what it breaks, in one phrase.
        obstacle: why it does not apply to a site, or ``None``.
        apply: break the site in place.
    """

    name: str
    breaks: str
    obstacle: Callable[[ir.Model, SiteRecord], str | None]
    apply: Callable[[ir.Model, SiteRecord], None]


@dataclass(frozen=True, slots=True)
class ControlResult:
    """What became of one control.

    Attributes:
        applicable: whether there was a site to break.
        detected: whether verification failed, as it must.
        relative: the largest error it caused, relative to the spread.
        reason: why it did not apply or was not detected.
    """

    name: str
    breaks: str
    applicable: bool
    detected: bool
    sites: int = 0
    relative: float | None = None
    output: str | None = None
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing was missed."""
        return self.detected or not self.applicable

    def as_dict(self) -> dict[str, object]:
        """Return the fields and the verdict, for JSON."""
        return asdict(self) | {"passed": self.passed}


@dataclass(frozen=True, slots=True)
class BrokenModel:
    """A control and the model it made, or why there is none."""

    control: Control
    model: ir.Model | None
    sites: int = 0
    reason: str = ""

    def inapplicable(self) -> ControlResult:
        """Return the result of a control without a model."""
        control = self.control
        return ControlResult(control.name, control.breaks, False, False, reason=self.reason)


def broken_models(model: ir.Model, sites: Sequence[SiteRecord]) -> Iterator[BrokenModel]:
    """Yield each control's copy of ``model``, one at a time.

    Raises `InputError` where a site names a value that the model does not have.
    """
    for control in CONTROLS:
        yield _broken(control, model, sites)


def _broken(control: Control, model: ir.Model, sites: Sequence[SiteRecord]) -> BrokenModel:
    if not sites:
        return BrokenModel(control, None, reason=f"{METADATA_KEY} names no absorbed attention")
    obstacles = {site.name: control.obstacle(model, site) for site in sites}
    fit = [site for site in sites if obstacles[site.name] is None]
    reasons = sorted({reason for reason in obstacles.values() if reason is not None})
    if not fit:
        return BrokenModel(control, None, reason="; ".join(reasons))
    copy = model.clone()
    for site in fit:
        control.apply(copy, site)
    return BrokenModel(control, copy, len(fit))


def _scale_obstacle(model: ir.Model, site: SiteRecord) -> str | None:
    same = abs(site.default_scale / site.scale - 1) < SAME_SCALE
    return "the scale is 1/sqrt(C + R) itself" if same else None


def _scale(model: ir.Model, site: SiteRecord) -> None:
    ratio = np.asarray(site.default_scale / site.scale, np.float32)

    def rescaled(query: ir.Value) -> list[ir.Node]:
        constant = ir.node("Constant", [], {"value": ir.tensor(ratio)})
        cast = _cast_like(model, constant.outputs[0], query)
        return [constant, cast, ir.node("Mul", [query, cast.outputs[0]])]

    _splice(model, site, rescaled)


def _cast_like(model: ir.Model, value: ir.Value, like: ir.Value) -> ir.Node:
    """Convert to the type of ``like``, as noted there or else for the weights before CastLike."""
    if model.opset_imports.get("", CAST_LIKE_SINCE) >= CAST_LIKE_SINCE:
        return ir.node("CastLike", [value, like])
    stored = (each.dtype for each in model.graph.initializers.values())
    floats = (kind for kind in (like.dtype, *stored) if kind is not None)
    kind = next((kind for kind in floats if kind.is_floating_point()), ir.DataType.FLOAT)
    return ir.node("Cast", [value], {"to": int(kind)})


def _rope_obstacle(model: ir.Model, site: SiteRecord) -> str | None:
    if site.qk_rope_head_dim < 2:
        return f"there are no rope halves to swap, R = {site.qk_rope_head_dim}"
    return None


def _rope(model: ir.Model, site: SiteRecord) -> None:
    latent, rope = site.kv_lora_rank, site.qk_rope_head_dim
    order = np.concatenate([np.arange(latent), latent + np.roll(np.arange(rope), -(rope // 2))])

    def swapped(query: ir.Value) -> list[ir.Node]:
        constant = ir.node("Constant", [], {"value": ir.tensor(order.astype(np.int64))})
        return [constant, ir.node("Gather", [query, constant.outputs[0]], {"axis": -1})]

    _splice(model, site, swapped)


def _heads_obstacle(model: ir.Model, site: SiteRecord) -> str | None:
    if site.w_uk is None:
        return "W_UK is folded into the query projection"
    heads = _initializer(model, site).shape
    if heads is not None and heads[0] == 1:
        return "there is one head only"
    return None


def _heads(model: ir.Model, site: SiteRecord) -> None:
    weight = _initializer(model, site)
    if weight.const_value is None:
        raise InputError(f"{METADATA_KEY}: initializer {weight.name!r} has no data")
    rolled = np.roll(weight.const_value.numpy(), 1, axis=0)
    weight.const_value = ir.Tensor(rolled, dtype=weight.const_value.dtype, name=weight.name)


def _initializer(model: ir.Model, site: SiteRecord) -> ir.Value:
    """The initializer of W_UK, wherever it is kept."""
    for graph in model.graphs():
        if site.w_uk is not None and site.w_uk in graph.initializers:
            value = graph.initializers[site.w_uk]
            if value.shape is not None and value.shape.rank() == 3:
                return value
    raise InputError(
        f"{METADATA_KEY}: site {site.name!r} names w_uk {site.w_uk!r}, which is no initializer of"
        " three dimensions"
    )


def _splice(model: ir.Model, site: SiteRecord, make: Callable[[ir.Value], list[ir.Node]]) -> None:
    """Put the nodes of ``make`` between the absorbed query and all that read it."""
    for query in _queries(model, site):
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


def _queries(model: ir.Model, site: SiteRecord) -> list[ir.Value]:
    """Every value of that name; two branches may each have one."""
    nodes = (node for graph in model.graphs() for node in graph)
    found = [v for node in nodes for v in node.outputs if v.name == site.query]
    if not found:
        raise InputError(
            f"{METADATA_KEY}: site {site.name!r} names query {site.query!r}, which no node of the"
            " model makes"
        )
    return found


CONTROLS: tuple[Control, ...] = (
    Control("scale", "the softmax scale is 1/sqrt(C + R)", _scale_obstacle, _scale),
    Control("rope", "the rotary halves of the query are swapped", _rope_obstacle, _rope),
    Control("heads", "every head has its neighbour's W_UK", _heads_obstacle, _heads),
)
