"""A parity report as tables for a terminal."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mla_opt.verification.drift import Drift
from mla_opt.verification.negative_controls import ControlResult
from mla_opt.verification.parity import OutputParity, ScenarioParity
from mla_opt.verification.report import ParityReport


def render(report: ParityReport) -> Group:
    """Return the verdict, then outputs, scenarios and controls, each in a table."""
    parts: list[Table | Text] = [_verdict(report), _outputs(report), _scenarios(report)]
    if report.drift:
        parts.append(_drift(report.drift))
    if report.controls:
        parts.append(_controls(report))
    return Group(*parts)


def _verdict(report: ParityReport) -> Text:
    if report.passed:
        verdict = Text("verification passed", style="bold green")
        verdict.append(f" (--seed {report.seed} repeats it)", style="none")
    else:
        lines = "".join(f"\n  {failure}" for failure in report.failures)
        verdict = Text(f"verification failed (--seed {report.seed} repeats it){lines}", "bold red")
    return verdict.append(f"\nnote: {report.note}", style="yellow") if report.note else verdict


def _mark(passed: bool) -> Text:
    return Text("ok", style="green") if passed else Text("FAILED", style="bold red")


def _outputs(report: ParityReport) -> Table:
    table = Table(title="outputs, at their worst", title_justify="left")
    table.add_column("output", overflow="fold")
    for heading in ("max abs", "of spread", "noise", "tolerated", "argmax"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for output in report.outputs:
        table.add_row(*_numbers(output), _mark(output.passed))
    return table


def _numbers(output: OutputParity) -> list[Text]:
    agreement = output.argmax_agreement
    cells = [
        output.name,
        f"{output.max_abs:.1e}",
        f"{output.relative:.1e}",
        f"{output.noise:.1e}",
        f"{output.tolerance:.1e}",
        "" if agreement is None else f"{agreement:.1%}",
    ]
    return [Text(cell) for cell in cells]  # names come from the model and may look like markup


def _scenarios(report: ParityReport) -> Table:
    table = Table(title="scenarios", title_justify="left")
    for heading in ("scenario", "B", "past", "query lengths", "padding", "worst", ""):
        table.add_column(heading)
    for result in report.scenarios:
        table.add_row(*_scenario_cells(result))
    return table


def _scenario_cells(result: ScenarioParity) -> list[Text]:
    scenario = result.scenario
    worst = max((output.relative for output in result.outputs), default=None)
    verdict = _mark(result.passed) if result.skipped is None else Text("skipped", style="yellow")
    note = result.error or result.skipped
    cells = [
        scenario.name if note is None else f"{scenario.name}: {note}",
        str(scenario.batch),
        str(scenario.initial_past),
        " ".join(map(str, scenario.calls)),
        " ".join(map(str, scenario.padding)),
        "" if worst is None else f"{worst:.1e}",
    ]
    return [*(Text(cell) for cell in cells), verdict]


def _drift(drift: Drift) -> Table:
    """What the roundings of quantized activations make of both models, as they are deployed."""
    decides = "decides nothing" if drift.limit is None else f"at most {drift.limit:g}"
    title = f"drift as deployed, rms of spread ({decides})"
    table = Table(title=title, title_justify="left")
    table.add_column("output", overflow="fold")
    for heading in ("original", "optimized"):
        table.add_column(heading, justify="right")
    for output in drift.outputs:
        sides = (output.original, output.optimized)
        numbers = ("not run" if side is None else f"{side:.1e}" for side in sides)
        table.add_row(*map(Text, (output.name, *numbers)))
    for problem in drift.problems:
        table.add_row(Text(problem, style="yellow"))
    return table


def _controls(report: ParityReport) -> Table:
    table = Table(title="negative controls", title_justify="left")
    for heading in ("control", "what is broken", "sites", "of spread", "result"):
        table.add_column(heading)
    for control in report.controls:
        error = "" if control.relative is None else f"{control.relative:.1e}"
        cells = [control.name, control.breaks, str(control.sites), error]
        table.add_row(*(Text(cell) for cell in cells), _control_verdict(control))
    return table


def _control_verdict(control: ControlResult) -> Text:
    if not control.applicable:
        return Text(f"not applicable: {control.reason}", style="yellow")
    if control.detected:
        return Text("detected", style="green")
    return Text(f"NOT DETECTED: {control.reason}", style="bold red")
