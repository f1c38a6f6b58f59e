"""One function for each part of the benchmark: build what it needs, measure, and say what was
found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mla_opt.benchmarking.machine import Machine
from mla_opt.benchmarking.turns import Timing
from tests.benchmarks import figures, kernel_core, models, optimize_time, prompt, runner, suite
from tests.benchmarks import products as operator
from tests.benchmarks import whole as whole_run
from tests.benchmarks.dims import Dims
from tests.benchmarks.figures import Figure
from tests.benchmarks.runner import Case
from tests.benchmarks.sheet import Sheet, depth_sheet, timing_sheet
from tests.benchmarks.suite import Suite


@dataclasses.dataclass
class Bench:
    """A run of the benchmark: what it uses, and what it has found so far."""

    suite: Suite
    machine: Machine
    say: Callable[[str], None]
    sheets: list[Sheet] = dataclasses.field(default_factory=list)
    figures: list[Figure] = dataclasses.field(default_factory=list)
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    skipped: list[str] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)
    built: dict[tuple[str, str], Path | None] = dataclasses.field(default_factory=dict)

    def model(self, name: str, dims: Dims, make: Callable[[], Path | None]) -> Path | None:
        """Build one model, or note why there is none; once, whatever sections use it."""
        key = (name, dims.to_json())
        if key not in self.built:
            self.say(f"building {name}, {dims.layers} layers")
            self.built[key] = self._attempt(make)
        return self.built[key]

    def _attempt(self, make: Callable[[], Path | None]) -> Path | None:
        try:
            return make()
        except models.BuildError as error:
            self.say(f"failed: {error}")
            self.failed.append(str(error))
            return None

    def measure(self, section: str, case: Case, built: dict[str, Path]) -> dict[str, Timing]:
        """Time one case and keep its table."""
        self.say(f"measuring {case.name}")
        timings = runner.measure(case, built)
        self.sheets.append(
            timing_sheet(f"{case.name} (batch 1, {runner.THREADS} threads)", timings)
        )
        cases = self.results.setdefault(section, {})
        cases[case.name] = {name: timing.to_dict() for name, timing in timings.items()}
        return timings


def latent_models(bench: Bench, dims: Dims) -> dict[str, Path]:
    """The export of the current transformers, the hand-made graphs, and what mla-opt makes."""
    original = bench.model(figures.ORIGINAL, dims, lambda: models.exported(dims))
    if original is None:
        return {}
    makers: dict[str, Callable[[], Path]] = {
        figures.CLEAN: lambda: models.optimized(original, absorb="none"),
        figures.CLEAN_BY_HAND: lambda: models.handmade(dims, "expanded"),
        figures.OPTIMIZED: lambda: models.optimized(original),
        figures.ABSORBED_BY_HAND: lambda: models.handmade(dims, "absorbed"),
    }
    built = {name: bench.model(name, dims, make) for name, make in makers.items()}
    return {figures.ORIGINAL: original, **{k: v for k, v in built.items() if v is not None}}


def kernel_models(bench: Bench, dims: Dims) -> dict[str, Path]:
    """Models that run with the kernel library: both forms, and the one that holds both."""
    original = bench.model(figures.ORIGINAL, dims, lambda: models.exported(dims))
    if original is None:
        return {}
    makers: dict[str, Callable[[], Path]] = {
        figures.KERNEL: lambda: models.optimized(original, prefill="auto"),
        figures.KERNEL_ABSORBED: lambda: models.optimized(original, prefill="absorbed"),
        figures.KERNEL_EXPANDED: lambda: models.optimized(original, prefill="expanded"),
    }
    built = {name: bench.model(name, dims, make) for name, make in makers.items()}
    return {name: model for name, model in built.items() if model is not None}


def expanded_cache_models(bench: Bench, dims: Dims) -> dict[str, Path]:
    """The export of transformers 4.57 and what mla-opt makes of it."""
    if models.old_python() is None:
        line = f"transformers 4.57: set {models.OLD_PYTHON_VARIABLE} to a Python that has it"
        bench.say(f"skipped: {line}")
        bench.skipped.append(line)
        return {}
    original = bench.model(figures.ORIGINAL_457, dims, lambda: models.exported_expanded_cache(dims))
    if original is None:
        return {}
    optimized = bench.model(figures.OPTIMIZED_457, dims, lambda: models.optimized(original))
    extra = {} if optimized is None else {figures.OPTIMIZED_457: optimized}
    return {figures.ORIGINAL_457: original, **extra}


def decode(bench: Bench) -> None:
    """One token at several past lengths."""
    built = {
        **latent_models(bench, bench.suite.lite),
        **expanded_cache_models(bench, bench.suite.lite),
    }
    measured = []
    for case in bench.suite.decode:
        timings = bench.measure("decode", case, built)
        measured.append((case.past, timings))
        targets = bench.suite.decode_targets(case)
        bench.figures += figures.decode_figures(case, timings, targets)
        bench.figures += figures.ceiling_figures(case, timings, bench.suite.lite, bench.machine)
    core = figures.core_figures(bench.suite.lite, bench.machine, measured[-2], measured[-1])
    bench.figures += core


def memory(bench: Bench) -> None:
    """Peak memory beyond the model at the longest past."""
    case = bench.suite.memory
    timings = bench.measure("memory", case, latent_models(bench, bench.suite.lite))
    target = bench.suite.target(suite.MEMORY_TARGET)
    bench.figures += figures.memory_figures(case, timings, target)


def prefill(bench: Bench) -> None:
    """Many tokens at once."""
    built = latent_models(bench, bench.suite.lite)
    for case in bench.suite.prefill:
        timings = bench.measure("prefill", case, built)
        target = bench.suite.target(suite.PREFILL_TARGETS.get(case.past))
        bench.figures += figures.speedup(
            timings, figures.ORIGINAL, figures.OPTIMIZED, f"{case.name}: whole gain", target
        )
        bench.figures += figures.speedup(
            timings,
            figures.cleanest(timings),
            figures.OPTIMIZED,
            f"{case.name}: against the clean graph",
        )


def sweep(bench: Bench) -> None:
    """Numbers of new tokens, with the kernel."""
    built = {**latent_models(bench, bench.suite.lite), **kernel_models(bench, bench.suite.lite)}
    for case in bench.suite.sweep:
        timings = bench.measure("sweep", case, built)
        bench.figures += figures.sweep_figures(case, timings, bench.suite.promised)


def kernel(bench: Bench) -> None:
    """The kernel by itself."""
    core = bench.suite.core
    timings = []
    for case in kernel_core.cases(core.heads, core.keys):
        bench.say(f"measuring the kernel, {case.name}")
        timings.append(kernel_core.measure(case, core.rounds))
        bench.figures += kernel_core.figures(timings[-1], bench.suite.promised)
    bench.sheets.append(kernel_core.sheet(timings))
    bench.results["kernel"] = [timing.to_dict() for timing in timings]


def prompts(bench: Bench) -> None:
    """Prompts into a static cache with the kernel: in one call, and long ones in chunks.

    By function bodies alone, too, which are never to be worse than the original.
    """
    dims = bench.suite.lite
    original = bench.model(figures.ORIGINAL, dims, lambda: models.exported(dims))
    if original is None:
        return
    static = bench.model(figures.STATIC, dims, lambda: models.optimized(original, cache="static"))
    if static is None:
        return
    keep = bench.model(figures.OPTIMIZED, dims, lambda: models.optimized(original))
    built = {figures.ORIGINAL: original, figures.STATIC: static, figures.STATIC_BODY: static}
    built |= {} if keep is None else {figures.OPTIMIZED: keep}
    least = bench.suite.target(suite.BODY_TARGET)
    for case in bench.suite.static:
        timings = bench.measure("static", case, built)
        most = bench.suite.target(suite.STATIC_TARGETS.get((case.new, case.past)))
        bench.figures += figures.static_figures(case, timings, dims, bench.machine, most)
        bench.figures += figures.body_figures(case, timings, least)
    _in_chunks(bench, static)
    _of_v3(bench)


def _of_v3(bench: Bench) -> None:
    """A prompt through one layer of DeepSeek-V3."""
    dims, case = bench.suite.v3, bench.suite.v3_prompt
    original = bench.model(figures.ORIGINAL, dims, lambda: models.exported(dims))
    if original is None:
        return
    static = bench.model(figures.STATIC, dims, lambda: models.optimized(original, cache="static"))
    if static is not None:
        timings = bench.measure("static", case, {figures.STATIC: static})
        most = bench.suite.target(suite.V3_PROMPT_TARGET)
        bench.figures += figures.static_figures(case, timings, dims, bench.machine, most)


def _in_chunks(bench: Bench, static: Path) -> None:
    found = []
    for tokens in bench.suite.prompts:
        bench.say(f"measuring a prompt of {tokens}")
        found.append(prompt.measure(static, tokens, runner.THREADS))
    most = bench.suite.target(suite.STATIC_TARGETS[prompt.TARGET_TOKENS, 0])
    bench.sheets.append(prompt.sheet(found))
    bench.figures += prompt.figures(found, bench.suite.lite, bench.machine, most)
    bench.results["prompts"] = [dataclasses.asdict(one) for one in found]


def products(bench: Bench) -> None:
    """The operator that holds its weights, by itself."""
    chosen = bench.suite.products
    bench.say("measuring the operator that holds its weights")
    spent = operator.step(chosen.rounds)
    bench.sheets.append(operator.step_sheet(spent))
    bench.figures += operator.step_figures(spent, bench.suite.promised)
    found = operator.layers(chosen.sizes, chosen.prompt_rounds, not bench.suite.promised)
    bench.sheets.append(operator.layer_sheet(found))
    bench.results["products"] = {name: each.seconds for name, each in spent.items()}


def v3(bench: Bench) -> None:
    """One layer of DeepSeek-V3's dimensions."""
    case = bench.suite.v3_decode
    timings = bench.measure("v3", case, latent_models(bench, bench.suite.v3))
    targets = {"whole": suite.V3_TARGET} if bench.suite.promised else {}
    bench.figures += figures.decode_figures(case, timings, targets)


def optimize(bench: Bench) -> None:
    """Time to optimize, by depth."""
    depths = []
    for layers in bench.suite.depths:
        bench.say(f"optimizing {layers} layers")
        try:
            depths.append(optimize_time.measure_depth(bench.suite.scaling(layers)))
        except models.BuildError as error:
            bench.say(f"failed: {error}")
            bench.failed.append(str(error))
            return
    bench.sheets.append(depth_sheet(depths))
    bench.results["optimize"] = [depth.to_dict() for depth in depths]
    bench.figures += optimize_figures(bench.suite, depths)


def optimize_figures(chosen: Suite, depths: list[optimize_time.Depth]) -> list[Figure]:
    """Extra seconds at each depth, and whether they grow in a straight line."""
    lines = []
    for depth in depths:
        promised = depth.layers == suite.EXTRA_SECONDS_LAYERS
        target = chosen.target(suite.EXTRA_SECONDS_TARGET) if promised else None
        what = f"optimize, {depth.layers} layers: beyond reading and writing"
        lines.append(Figure(what, depth.extra, None, target, at_least=False, unit="s"))
    if len(depths) > 2:
        what = f"optimize: slope after {depths[-2].layers} layers over the whole slope"
        target = chosen.target(suite.BEND_TARGET)
        lines.append(Figure(what, optimize_time.bend(depths), None, target, at_least=False))
        milliseconds = 1000 * optimize_time.slope(depths)
        lines.append(Figure("optimize: each further layer", milliseconds, unit="ms"))
    return lines


def whole(bench: Bench) -> None:
    """A whole 4-bit model of MiniCPM3's sizes, beside llama.cpp where that is installed."""
    _whole(bench, "whole", bench.suite.whole)


def whole_lite(bench: Bench) -> None:
    """The same of DeepSeek-V2-Lite's, dense; beside ik_llama.cpp, too."""
    _whole(bench, "whole-lite", bench.suite.whole_lite)


def two_layers(bench: Bench) -> None:
    """Two layers of DeepSeek-V2-Lite's in 4 bits, beside llama.cpp and ik_llama.cpp."""
    for chosen in bench.suite.two_layers:
        _whole(bench, "two-layers", chosen)


def _whole(bench: Bench, section: str, chosen: whole_run.Whole) -> None:
    everybody = whole_run.Everybody.of(chosen, bench.say)
    bench.say("comparing everybody's outputs")
    errors = everybody.errors(chosen)
    timed: list[whole_run.Timed] = []
    try:
        for one in whole_run.measure(chosen, everybody, bench.skipped, bench.say):
            timed.append(one)
    finally:  # what was measured before somebody stopped it
        bench.sheets.append(whole_run.sheet(chosen, timed, errors))
    bench.figures += whole_run.figures(chosen, timed)
    by_threads = bench.results.setdefault(section, {})
    by_threads[str(chosen.threads)] = [one.to_dict() for one in timed]


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "decode": decode,
    "memory": memory,
    "prefill": prefill,
    "v3": v3,
    "kernel": kernel,
    "sweep": sweep,
    "prompts": prompts,
    "products": products,
    "optimize": optimize,
    "whole": whole,
    "whole-lite": whole_lite,
    "two-layers": two_layers,
}
