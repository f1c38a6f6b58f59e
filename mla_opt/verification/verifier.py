"""Runs the original, then the optimized model, then the controls, and compares.

One session is open at a time: what the original said is kept, its session is not.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy.typing as npt

from mla_opt.errors import InputError, VerificationError
from mla_opt.events import VerifyProgress
from mla_opt.operator.paged_attention import OP_TYPE as PAGED_ATTENTION
from mla_opt.programs.recognize import is_program, is_program_file
from mla_opt.verification.alignment import Aligner, joined_name
from mla_opt.verification.drift import LIMITS, Deployed, Drift, measure_drift
from mla_opt.verification.interface_map import InterfaceMap
from mla_opt.verification.negative_controls import (
    CONTROLS,
    BrokenModel,
    ControlResult,
    broken_models,
)
from mla_opt.verification.onnx.paged.session import PagedModel
from mla_opt.verification.onnx.quantized import quantized_after
from mla_opt.verification.onnx.sessions import ModelLike, open_model
from mla_opt.verification.oracle import (
    Driver,
    Run,
    States,
    run_scenario,
)
from mla_opt.verification.pair import Pair, check_decodes
from mla_opt.verification.parity import Tolerance, compare, worst_by_name
from mla_opt.verification.precision import rounded_cache_type
from mla_opt.verification.report import ParityReport
from mla_opt.verification.running import RunError, Runnable, Running
from mla_opt.verification.scenarios import Scenario, plan

if TYPE_CHECKING:
    from mla_opt.programs.recognize import Program

Array = npt.NDArray[Any]
Progress = Callable[[VerifyProgress], None]

LONG_SCENARIO = "long prompt"


def verify(
    original: ModelLike,
    optimized: ModelLike,
    *,
    tolerance: float | None = None,
    controls: bool = True,
    seed: int | None = None,
    progress: Progress | None = None,
    libraries: Sequence[str | Path] = (),
) -> ParityReport:
    """Run both models on the same inputs and compare all they say.

    Args:
        original: a path, a proto, a graph or a PyTorch program.
        optimized: the same, with the metadata that tells what changed.
        tolerance: the error to tolerate, relative to the spread of an output; measured if ``None``.
        controls: whether broken copies of ``optimized`` must be noticed, too.
        seed: what all inputs follow from; a fresh one, which the report names, if ``None``.
        progress: called before each run.
        libraries: custom-operator libraries for the optimized model.

    Raises:
        InputError: one cannot be read, the original cannot be run, or the interfaces differ in
            ways that the metadata does not explain.
        VerificationError: the optimized model cannot be loaded.
    """
    before = _opened(original, "original")
    after = _opened(optimized, "optimized", tuple(Path(library) for library in libraries))
    deployed = Pair.of(before, after)
    models = deployed.twins()
    quantized = quantized_after(before.model, after.model)
    borrowed = 0
    if quantized:
        borrowing, borrowed = models.original.with_weights_of(models.optimized)
        models = Pair.of(borrowing, models.optimized)
    scenarios = plan(models.room())
    check_decodes(models, scenarios)
    seed = fresh_seed() if seed is None else seed
    runs = 3 * len(scenarios) + (len(CONTROLS) if controls else 0) + 2 * (models is not deployed)
    counter = _Counter(progress, runs)
    verifier = _Verifier(models, deployed, seed, counter, borrowed)
    report = verifier.report(scenarios, tolerance, controls)
    stand_in = PAGED_ATTENTION if isinstance(after, PagedModel) else ""
    return replace(report, quantized=quantized, borrowed=borrowed, stand_in=stand_in)


def fresh_seed() -> int:
    """A seed that nobody who wrote a model could know."""
    return secrets.randbelow(1 << 31)


def _opened(model: ModelLike, label: str, libraries: Sequence[Path] = ()) -> Runnable:
    if not (is_program(model) or is_program_file(model)):
        opened = open_model(model, label, libraries)
        return PagedModel(opened) if InterfaceMap.of(opened.model).is_paged else opened
    from mla_opt.programs.frontends import open_program
    from mla_opt.programs.saved import read_program
    from mla_opt.verification.torch.sessions import OpenProgram

    program = read_program(Path(model)).program if is_program_file(model) else model
    return OpenProgram.of(label, open_program(cast("Program", program)))


@dataclass(slots=True)
class _Counter:
    """Tells an observer how many of the runs are done."""

    observer: Progress | None
    total: int
    done: int = 0

    def next(self, label: str) -> None:
        """Announce the run called ``label``."""
        if self.observer is not None:
            self.observer(VerifyProgress(self.done, self.total, label))
        self.done += 1


@dataclass(frozen=True, slots=True)
class _Verifier:
    """Compares ``models``; ``deployed`` are the same, or the models that those are twins of.

    ``borrowed``: how many layers of the optimized model the original that is compared has.
    """

    models: Pair
    deployed: Pair
    seed: int
    counter: _Counter
    borrowed: int = 0

    def report(
        self, scenarios: Sequence[Scenario], tolerance: float | None, controls: bool
    ) -> ParityReport:
        """Run everything and compare."""
        reference = tuple(self._reference(scenarios, optimized=True))
        _require_one(reference)
        noise = self._noise(reference)
        limits = self._tolerance(tolerance, noise)
        candidate = self._candidate(self.models.optimized, reference)
        results = tuple(
            compare(self.models.aligner, a, b, limits) for a, b in zip(reference, candidate)
        )
        outputs = worst_by_name(output for result in results for output in result.outputs)
        chosen = _control_run(reference)
        del reference, candidate
        verdicts = self._controls(chosen, limits) if controls else ()
        drift = self._drift(chosen)
        return ParityReport(outputs, results, verdicts, limits, self.seed, drift=drift)

    def _drift(self, reference: Run) -> Drift:
        """How far both are from the reference as they are deployed, where that differs."""
        if self.deployed is self.models:
            return Drift()
        deployed = _Verifier(self.deployed, self.deployed, self.seed, self.counter)
        scenarios, interface = [reference.scenario], self.deployed.before.interface
        before = _one_run(lambda: deployed._reference(scenarios, True), reference)
        if self.borrowed and before.error is None:  # what is compared has other weights than this
            reference = before
        after = _one_run(
            lambda: deployed._candidate(self.deployed.optimized, [reference]), reference
        )
        original = Deployed(Aligner(interface, interface, InterfaceMap()), before)
        optimized = Deployed(self.models.aligner, after)
        kind = rounded_cache_type(self.deployed.after.interface)
        return measure_drift(reference, original, optimized, LIMITS.get(kind or ""))

    def _reference(self, scenarios: Iterable[Scenario], optimized: bool) -> Iterator[Run]:
        """Run the original, with or without ONNX Runtime's graph optimizations.

        One run after the other: who needs one at a time has one in memory.
        """
        try:
            session = self.models.original.session(optimized)
        except RunError as error:
            raise InputError(str(error)) from error
        label = "original" if optimized else "original, noise floor"
        for scenario in scenarios:
            yield self._run_original(session, scenario, label)

    def _run_original(self, session: Running, scenario: Scenario, label: str) -> Run:
        self.counter.next(f"{label}: {scenario.name}")
        driver = self.models.before
        compared, _ = self.models.aligner.compared_states()
        past = self._past(driver, scenario)
        return run_scenario(session, driver, scenario, self.seed, compared, past)

    def _candidate(self, model: Runnable, reference: Sequence[Run]) -> Iterator[Run]:
        """Run what the original could run, one run after the other."""
        try:
            session = model.session()
        except RunError as error:
            raise VerificationError(str(error)) from error
        for run in reference:
            failed = run.error is not None
            yield Run(run.scenario, (), run.error) if failed else self._run_optimized(session, run)

    def _run_optimized(self, session: Running, run: Run) -> Run:
        models, scenario = self.models, run.scenario
        self.counter.next(f"{session.label}: {scenario.name}")

        def translated(scenario: Scenario) -> dict[str, Array]:
            past = models.before.made_up_states(scenario, self.seed)
            return models.aligner.translate(past, models.after.initial_states(scenario))

        states = translated if scenario.initial_past else None
        _, compared = models.aligner.compared_states()
        return run_scenario(session, models.after, scenario, self.seed, compared, states)

    def _past(self, driver: Driver, scenario: Scenario) -> States | None:
        if not scenario.initial_past:
            return None
        return lambda scenario: driver.made_up_states(scenario, self.seed)

    def _noise(self, reference: Sequence[Run]) -> dict[str, float]:
        """How far the original is from itself, unoptimized, by output."""
        runs = self._reference([run.scenario for run in reference], optimized=False)
        interface = self.models.before.interface
        aligner = Aligner(interface, interface, InterfaceMap())
        results = (
            compare(aligner, a, b, Tolerance.fixed(0.0, {}))
            for a, b in zip(reference, runs)
            if a.error is None and b.error is None
        )
        outputs = worst_by_name(output for result in results for output in result.outputs)
        noise = {output.name: output.relative for output in outputs}
        for change in self.models.aligner.changes.states:
            parts = (noise.get(name, 0.0) for name in change.original.outputs)
            noise[joined_name(change)] = max(parts)
        return noise

    def _tolerance(self, given: float | None, noise: dict[str, float]) -> Tolerance:
        if given is not None:
            return Tolerance.fixed(given, noise)
        return self.models.tolerance(noise)

    def _controls(self, run: Run, limits: Tolerance) -> tuple[ControlResult, ...]:
        models = broken_models(self.models.optimized.breakable(), self.models.sites)
        return tuple(self._control(broken, run, limits) for broken in models)

    def _control(self, broken: BrokenModel, run: Run, limits: Tolerance) -> ControlResult:
        if broken.model is None:
            return broken.inapplicable()
        control = broken.control
        label = f"optimized (control: {control.name})"
        model = self.models.optimized.broken(label, broken.model)
        (candidate,) = self._candidate(model, [run])
        result = compare(self.models.aligner, run, candidate, limits)
        worst = max(
            result.outputs, key=lambda o: o.relative / max(o.tolerance, 1e-12), default=None
        )
        detected = result.error is None and not result.passed
        reason = result.error or ("" if detected else "its outputs are within the tolerance")
        return ControlResult(
            name=control.name,
            breaks=control.breaks,
            applicable=True,
            detected=detected,
            sites=broken.sites,
            relative=worst.relative if worst else None,
            output=worst.name if worst else None,
            reason=reason,
        )


def _one_run(run: Callable[[], Iterable[Run]], like: Run) -> Run:
    """One run; a model that the runtime does not take as it is has a twin all the same."""
    try:
        return next(iter(run()))
    except (InputError, VerificationError) as error:
        return Run(like.scenario, (), str(error))


def _require_one(runs: Sequence[Run]) -> None:
    errors = [run.error for run in runs if run.error is not None]
    if len(errors) == len(runs):
        raise InputError(f"the original model runs on no input that was tried: {errors[0]}")


def _control_run(runs: Sequence[Run]) -> Run:
    """The run with most keys in sight among those short enough to be absorbed."""
    usable = [run for run in runs if run.error is None]
    short = [run for run in usable if run.scenario.name != LONG_SCENARIO] or usable
    return max(short, key=lambda run: run.scenario.total_len)
