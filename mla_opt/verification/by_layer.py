"""Proof of a model layer by layer, in the memory of one: what is the same in both is not run.

Both graphs are compared operator by operator, stored tensors by their bytes. What is left are
regions, most of them an attention each, in which the models differ. Each is cut out of both as a
model of its own and verified like a whole one, on random hidden states, with its own cache, masks
and controls. If every region computes the same of the same, so do the models: nothing else in them
differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from mla_opt.errors import InputError
from mla_opt.events import VerifyProgress
from mla_opt.graphs.onnx.local_functions import inlined
from mla_opt.graphs.onnx.nbits import given_back
from mla_opt.programs.recognize import is_program, is_program_file
from mla_opt.verification.interface_map import InterfaceMap
from mla_opt.verification.negative_controls import ControlResult
from mla_opt.verification.onnx.layers.correspondence import Correspondence, Side
from mla_opt.verification.onnx.layers.parts import Part, part
from mla_opt.verification.onnx.layers.regions import regions
from mla_opt.verification.onnx.sessions import ModelLike, open_model
from mla_opt.verification.oracle import optimized_driver, original_driver
from mla_opt.verification.parity import ScenarioParity, worst_by_name
from mla_opt.verification.report import ParityReport
from mla_opt.verification.verifier import fresh_seed, verify

Progress = Callable[[VerifyProgress], None]


def verify_by_layer(
    original: ModelLike,
    optimized: ModelLike,
    *,
    tolerance: float | None = None,
    controls: bool = True,
    seed: int | None = None,
    progress: Progress | None = None,
    libraries: Sequence[str | Path] = (),
) -> ParityReport:
    """Show that two models compute the same, layer by layer; for models larger than memory.

    Args:
        original: a path, a proto or a graph.
        optimized: the same, with the metadata that tells what changed.
        tolerance: the error to tolerate, relative to the spread of an output; measured if ``None``.
        controls: whether broken copies of each layer must be noticed, too.
        seed: what all inputs follow from; a fresh one, which the report names, if ``None``.
        progress: called before each run.
        libraries: custom-operator libraries for the optimized model.

    Raises:
        InputError: a model cannot be read, or they cannot be taken apart: programs of PyTorch, an
            output of another type or shape, no difference at all.
        VerificationError: a layer of the optimized model cannot be loaded.
    """
    parts = list(_parts(original, optimized))
    seed = fresh_seed() if seed is None else seed
    reports = [
        verify(
            each.before,
            each.after,
            tolerance=tolerance,
            controls=controls,
            seed=seed,
            progress=_within(progress, place, len(parts), each.label),
            libraries=libraries,
        )
        for place, each in enumerate(parts)
    ]
    return _joined([_of_own(*pair) for pair in zip(parts, reports)])


def _parts(original: ModelLike, optimized: ModelLike) -> Iterable[Part]:
    """Every region in which they differ, cut out."""
    if any(is_program(each) or is_program_file(each) for each in (original, optimized)):
        raise InputError("PyTorch programs cannot be verified by layer yet; verify them whole")
    before = inlined(open_model(original, "original").model.clone())
    after = given_back(open_model(optimized, "optimized").model).clone()
    changes = InterfaceMap.of(after)
    if changes.is_paged:
        raise InputError(
            "a model over packed tokens cannot be verified by layer, as every operator of it has"
            " other shapes than the original's; verify it whole"
        )
    found = Correspondence.of(
        Side(before, original_driver(before, changes).interface),
        Side(after, optimized_driver(after, changes).interface),
    )
    differing = regions(found, changes)
    if not differing:
        raise InputError("both models are the same, operator by operator: nothing has to be run")
    return (part(found, changes, region) for region in differing)


def _within(progress: Progress | None, place: int, total: int, label: str) -> Progress | None:
    """Tells how many layers are done."""
    if progress is None:
        return None

    def told(event: VerifyProgress) -> None:
        progress(VerifyProgress(place, total, f"{label}, {event.label}"))

    return told


def _of_own(cut: Part, report: ParityReport) -> ParityReport:
    """A report without what the part was only given."""
    outputs = tuple(each for each in report.outputs if each.name not in cut.made_up)
    return replace(report, outputs=outputs, scenarios=tuple(_named(cut, report.scenarios)))


def _named(cut: Part, scenarios: Iterable[ScenarioParity]) -> Iterable[ScenarioParity]:
    for each in scenarios:
        outputs = tuple(output for output in each.outputs if output.name not in cut.made_up)
        error = None if each.error is None else f"{cut.label}: {each.error}"
        yield replace(each, outputs=outputs, error=error)


def _joined(reports: Sequence[ParityReport]) -> ParityReport:
    """One report of all layers."""
    scenarios: dict[str, ScenarioParity] = {}
    for each in (scenario for report in reports for scenario in report.scenarios):
        known = scenarios.get(each.scenario.name)
        scenarios[each.scenario.name] = each if known is None else _both(known, each)
    controls: dict[str, ControlResult] = {}
    for control in (each for report in reports for each in report.controls):
        seen = controls.get(control.name)
        controls[control.name] = control if seen is None else _worse(seen, control)
    widest = max(reports, key=lambda report: report.tolerance.floor)
    return replace(
        widest,
        outputs=worst_by_name(output for report in reports for output in report.outputs),
        scenarios=tuple(scenarios.values()),
        controls=tuple(controls.values()),
        layers=len(reports),
    )


def _both(one: ScenarioParity, other: ScenarioParity) -> ScenarioParity:
    skipped = one.skipped if one.skipped is not None and other.skipped is not None else None
    kept = other if one.skipped is not None else one
    return replace(
        kept,
        outputs=(*one.outputs, *other.outputs),
        error=one.error or other.error,
        skipped=skipped,
    )


def _worse(one: ControlResult, other: ControlResult) -> ControlResult:
    """The one that was missed, else the one that was noticed by least."""
    if not (one.applicable and other.applicable):
        return one if one.applicable else other
    if one.detected != other.detected:
        return other if one.detected else one
    least = min((one, other), key=lambda each: each.relative or 0.0)
    return replace(least, sites=one.sites + other.sites)
