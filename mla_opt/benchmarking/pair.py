"""Two models that belong together, and everything a process needs to drive either of them.

Nothing here holds on to a graph or a weight, so it can be handed to another process.
"""

from __future__ import annotations

import gc
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mla_opt.benchmarking.points import Point
from mla_opt.cost_model import CostForm, attention_stage, form_before
from mla_opt.errors import InputError
from mla_opt.files.model_io import model_files, read_model
from mla_opt.graphs.interface.feeds import numpy_dtype
from mla_opt.operator.contract import is_operator
from mla_opt.operator.multi_head import is_multi_head
from mla_opt.operator.quantized_rows import is_codes
from mla_opt.report.inspection import AttentionReport
from mla_opt.report.site import dtype_bytes
from mla_opt.verification.alignment import Aligner
from mla_opt.verification.interface_map import InterfaceMap, check_interfaces
from mla_opt.verification.onnx.twins import rounds_activations
from mla_opt.verification.oracle import Driver, optimized_driver, original_driver
from mla_opt.verification.parity import Tolerance
from mla_opt.verification.precision import rounded_cache_type, tolerance_for
from mla_opt.verification.scenarios import Scenario
from mla_opt.verification.site_records import SiteRecord, read_sites

Array = npt.NDArray[Any]
Side = Literal["original", "optimized"]

#: New tokens of the calls that are compared where two models cannot be given one past.
PROMPT_CALLS = (24, 1, 1)


@dataclass(frozen=True, slots=True)
class Model:
    """One side: where it is, how it is driven, and all its files."""

    path: Path
    driver: Driver
    files: tuple[Path, ...]

    @classmethod
    def of(cls, path: Path, model: ir.Model, driver: Driver) -> Model:
        """Note what is needed of `model`, which lies at `path`."""
        return cls(path, driver, tuple(model_files(path, model)))

    @property
    def file_bytes(self) -> int:
        """What it weighs."""
        return sum(file.stat().st_size for file in self.files)

    def state_bytes(self, point: Point) -> int:
        """Bytes of all caches before the first step."""
        driver, interface = self.driver, self.driver.interface
        rows = driver.capacity or point.context + point.query * point.growth
        shapes = interface.bind(point.batch, point.query, point.context, rows)
        ports = [state.input for state in interface.states]
        return sum(numpy_dtype(p).itemsize * int(np.prod(shapes[p.name])) for p in ports)


@dataclass(frozen=True, slots=True)
class Pair:
    """The original and the optimized model.

    Attributes:
        attentions: the latent attentions of the original, as inspection tells of them.
        sites: those that the optimized model says were rewritten.
        has_operator: whether the optimized model holds the fused operator.
        rounds: whether quantization rounds activations of either, so that twins without that are
            compared (:mod:`mla_opt.verification.onnx.twins`).
    """

    original: Model
    optimized: Model
    aligner: Aligner
    tolerance: Tolerance
    attentions: tuple[AttentionReport, ...]
    sites: tuple[SiteRecord, ...]
    has_operator: bool
    rounds: bool

    @classmethod
    def of(cls, original: Path, optimized: Path) -> Pair:
        """Read both files, and forget their weights.

        Raises:
            InputError: a file cannot be used, or the two do not belong together.
        """
        from mla_opt import api

        before, after = read_model(original), read_model(optimized)
        changes = InterfaceMap.of(after)
        first, second = original_driver(before, changes), optimized_driver(after, changes)
        check_interfaces(first.interface, second.interface, changes)
        pair = cls(
            original=Model.of(original, before, first),
            optimized=Model.of(optimized, after, second),
            aligner=Aligner(first.interface, second.interface, changes),
            tolerance=tolerance_for(before, second.interface, {}),
            attentions=tuple(a for a in api.inspect(before).attentions if a.matched),
            sites=read_sites(after),
            has_operator=_has_operator(after),
            rounds=rounds_activations(before) or rounds_activations(after),
        )
        del before, after
        gc.collect()
        return pair

    def model(self, side: Side) -> Model:
        """Return the model of one side."""
        return self.original if side == "original" else self.optimized

    def check(self, point: Point) -> None:
        """Raise `InputError` where either model cannot take `point`, saying why."""
        for side in ("original", "optimized"):
            driver = self.model(side).driver
            last = point.context + point.query
            if driver.capacity is not None and last > driver.capacity:
                raise InputError(
                    f"{point}: the cache of the {side} model holds {driver.capacity} tokens, and"
                    f" {last} are needed; use a shorter --context or a larger static cache"
                )
            try:
                driver.interface.bind(point.batch, point.query, point.context, driver.capacity)
            except InputError as error:
                raise InputError(f"{point}: the {side} model: {error}") from error

    def steps(self, point: Point) -> int:
        """Steps that both models can take from ``context`` tokens on, fed their own caches."""
        steps = point.growth
        for side in ("original", "optimized"):
            driver = self.model(side).driver
            limits = driver.interface.limits()
            if driver.interface.states and limits.past_len is None and limits.total_len is None:
                if driver.capacity is not None:
                    steps = min(steps, (driver.capacity - point.context) // point.query)
            else:
                steps = 1
        return steps

    def shares_past(self, point: Point) -> bool:
        """Whether both models can start `point` from the same rows."""
        return point.context == 0 or self.aligner.can_share_a_past()

    def past(self, side: Side, scenario: Scenario) -> dict[str, Array]:
        """Random caches for the first step: the same rows on both sides, where that is possible."""
        driver = self.model(side).driver
        if scenario.initial_past == 0 or not driver.interface.states:
            return driver.initial_states(scenario)
        if side == "optimized" and self.aligner.can_share_a_past():
            past = _noise(self.original.driver, scenario)
            return self.aligner.translate(past, driver.initial_states(scenario))
        return _noise(driver, scenario)

    def prompt(self, batch: int) -> Scenario:
        """A prompt and some steps from an empty cache, as far as fixed sizes allow."""
        fixed = self.original.driver.interface.limits().query_len
        calls = PROMPT_CALLS if fixed is None else (fixed,) * len(PROMPT_CALLS)
        return Scenario("prompt", batch, calls, (0,) * batch)

    def form(self, side: Side, query: int) -> CostForm | None:
        """How the attention of one side computes a query; `None` where it is not known."""
        if not self.attentions:
            return None
        before = form_before(self.attentions[0].cache_family)
        if side == "original" or not self.sites:
            return before
        limit = self.expands_from
        return "expanded" if limit is not None and query >= limit else "factored"

    @property
    def expands_from(self) -> int | None:
        """New tokens from which on all attentions of the optimized model expand; `None`: never."""
        known = [s.prefill_threshold for s in self.sites if s.prefill_threshold is not None]
        return max(known, default=None)

    def least_bytes(self, side: Side, point: Point) -> int:
        """Bytes that one side needs at the very least: weights, caches, and keys and values once
        for one attention where it expands them."""
        model = self.model(side)
        copies = 1 if model.driver.has_buffers else 2
        if self.form(side, point.query) not in ("expanded", "expanded-cache"):
            return model.file_bytes + copies * model.state_bytes(point)
        widest = max(
            a.geometry.expanded_width * dtype_bytes(a.dtype)
            for a in self.attentions
            if a.geometry is not None
        )
        expanded = widest * point.batch * (point.context + point.query)
        return model.file_bytes + copies * model.state_bytes(point) + expanded

    def cache_bytes(self, side: Side) -> int | None:
        """Bytes of a number in the caches of one side, where they are narrower than the rest."""
        rounded = rounded_cache_type(self.model(side).driver.interface)
        return None if rounded is None else dtype_bytes(rounded)

    def work(
        self, form: CostForm, point: Point, cache_bytes: int | None = None
    ) -> tuple[float, float]:
        """Operations and bytes of all attentions of one step, without projections.

        ``cache_bytes`` is what a number of the cache takes; if not given, what others take.
        """
        stages = [
            attention_stage(
                a.geometry,
                form,
                dtype_bytes=cache_bytes or dtype_bytes(a.dtype),
                workload=point.workload,
            )
            for a in self.attentions
            if a.geometry is not None
        ]
        return sum(s.flops for s in stages), sum(s.bytes for s in stages)


def _noise(driver: Driver, scenario: Scenario) -> dict[str, Array]:
    """Unit normal rows in every cache; what else a model keeps starts from zeros.

    Beside codes there are scales, which are positive, and make small numbers of them.
    """
    states = driver.initial_states(scenario)
    has_codes = any(is_codes(states[state.input.name].dtype) for state in driver.interface.states)
    for state in driver.interface.states:
        if state.kind != "recurrent":
            name = state.input.name
            random = np.random.default_rng(zlib.crc32(name.encode()))
            shape, dtype = states[name].shape, states[name].dtype
            # Drawn as float32: float64 would take twice the memory of the largest caches.
            drawn: Array = random.standard_normal(shape, np.float32)
            if has_codes:
                drawn = 30 * drawn.clip(-4, 4) if is_codes(dtype) else np.abs(drawn) / 30
            states[name] = drawn.astype(dtype, copy=False)
    return states


def _has_operator(model: ir.Model) -> bool:
    nodes = (n for graph in model.graphs() for n in graph)
    return any(
        is_operator(node.domain, node.op_type) or is_multi_head(node.domain, node.op_type)
        for node in nodes
    )
