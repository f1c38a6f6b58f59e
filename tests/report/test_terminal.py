"""The tables as text, without colour, as a person sees them in a file."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable

import pytest
from rich.console import Console, RenderableType

from mla_opt.cost_model import Workload
from mla_opt.report import OptimizationReport, grouping, terminal, units, with_costs
from tests.report import examples


def text(renderables: Iterable[RenderableType], width: int = 220) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width)
    for renderable in renderables:
        console.print(renderable)
    return out.getvalue()


def test_identical_layers_take_one_row() -> None:
    shown = text(terminal.optimization_tables(examples.report(27)))
    assert shown.count("layers 0-26 (27 sites)") == 1
    assert "model.layers" not in shown


def test_site_row_has_cache_ratio_and_worst_error() -> None:
    shown = text([terminal.sites_table(examples.report(3).sites)])
    assert "20.5 k -> 2.3 k (8.89x less)" in shown
    assert "expanded -> split" in shown
    assert "3.0e-07" in shown
    assert "expanded from 171 new tokens" in shown


def test_tables_fit_120_columns() -> None:
    report = examples.report(27)
    shown = text(terminal.optimization_tables(report, timings=True, details=True), width=120)
    assert "layers 0-26 (27 sites)" in shown
    assert "20.5 k -> 2.3 k" in shown


def test_an_error_that_is_not_finite_is_not_hidden() -> None:
    sites = [examples.site(0), examples.site(1, error=float("nan"))]
    assert "not finite" in text([terminal.sites_table(sites)])


def test_different_sites_take_a_row_each() -> None:
    other = dataclasses.replace(examples.site(1), form="fold-q")
    shown = text([terminal.sites_table([examples.site(0), other])])
    assert "model.layers.0.self_attn" in shown
    assert "model.layers.1.self_attn" in shown


def test_refusals_are_grouped_with_reason_and_remedy() -> None:
    shown = text([terminal.refusals_table(examples.report().refusals)])
    assert shown.count("query-depends-on-latent") == 1
    assert "layers 3-4 (2 sites)" in shown
    assert "the query is made from the same layer as the keys" in shown
    assert "nothing: this is ordinary attention" in shown


def test_shapes_survive_the_markup_of_rich() -> None:
    shown = text([terminal.interface_table(examples.report().interface_changes)])
    assert "past.[0-2].key (3 of them): float32 [batch, 16, past, 192]" in shown
    assert "past.[0-2].latent (3 of them): float32 [batch, 1, ?, 576]" in shown


def test_timings_only_when_asked() -> None:
    report = examples.report()
    assert "find_latent_attention" not in text(terminal.optimization_tables(report))
    assert "0.125" in text(terminal.optimization_tables(report, timings=True))


def test_verification_takes_one_line() -> None:
    shown = text(terminal.optimization_tables(examples.report()))
    assert (
        "verification passed, 1 outputs and states compared, worst logits: error 1.0e-06" in shown
    )


def test_details_give_the_reasons() -> None:
    report = examples.report()
    assert "folding is larger" not in text(terminal.optimization_tables(report))
    shown = text(terminal.optimization_tables(report, details=True))
    assert "layers 0-2 (3 sites): factored: folding is larger" in shown
    assert "scale 0.07 taken from the graph" in shown


def test_empty_report_prints_nothing() -> None:
    assert text(terminal.optimization_tables(OptimizationReport())) == ""


def test_inspection_shows_forms_and_refusals() -> None:
    report = with_costs(examples.inspection(), Workload(1, 1, 8192))
    shown = text(terminal.inspection_tables(report))
    assert "layers 0-2 (3 sites)" in shown
    assert "B=1 S=1 T=8192" in shown
    assert "factored (fastest)" in shown
    assert "expanded (now)" in shown
    assert "query-depends-on-latent" in shown
    assert "decode: factored; folding is larger" in shown
    assert "prefill: auto; 171 tokens" in shown


def test_sites_of_another_form_are_told_apart() -> None:
    first, *others = examples.inspection().attentions
    folded = dataclasses.replace(first, form="fold-q")
    report = dataclasses.replace(examples.inspection(), attentions=(folded, *others))
    shown = text(terminal.inspection_tables(with_costs(report, Workload())))
    assert "decode: fold-q; " in shown
    assert "decode: factored; " in shown


def test_operators_of_an_optimized_model() -> None:
    inlined = {"node": None, "cache": None, "num_heads": None, "prefill_threshold": None}
    operators = (*map(examples.operator, range(3)), examples.operator(3, **inlined))
    report = dataclasses.replace(examples.inspection(), attentions=(), operators=operators)
    shown = text(terminal.inspection_tables(report))
    assert "no attention found" not in shown
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines()]
    assert [row for row in rows if row] == [
        ["layers 0-2 (3 sites)", "LatentAttention", "H=16 N=128 R=64 V=128 C=512", "float32",
         "split", "factored, expanded from 171 new tokens"],
        ["model.layers.3.self_attn", "standard operators", "N=128 R=64 V=128 C=512", "float32",
         "-", "factored"],
    ]  # fmt: skip


def test_inspection_names_nodes_on_demand() -> None:
    shown = text(terminal.inspection_tables(examples.inspection(), details=True))
    assert "n1" in shown
    assert "/layers.3/MatMul" in shown


def test_model_without_attention_says_so() -> None:
    report = dataclasses.replace(examples.inspection(), attentions=())
    assert text(terminal.inspection_tables(report)) == "no attention found\n"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.3.b"], "a.3.b"),
        (["layers.0.x", "layers.2.x", "layers.1.x"], "layers 0-2 (3 sites)"),
        (["/Layer.1/a", "/Layer.3/a"], "layers 1, 3 (2 sites)"),
        (["sdpa_7", "sdpa_9"], "sdpa_[7, 9] (2 sites)"),
        (["l.0.attn.0", "l.0.attn.1", "l.1.attn.0"], "l.0.attn.0 ... l.1.attn.0 (3 sites)"),
        (["first", "second"], "first ... second (2 sites)"),
        (["same.1", "same.1"], "same.1 ... same.1 (2 sites)"),
    ],
)
def test_labels(names: list[str], expected: str) -> None:
    assert grouping.label(names) == expected


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [(0, "", "0"), (999, "B", "999 B"), (2304, "B", "2.3 kB"), (1.15e9, "B", "1.15 GB")],
)
def test_quantities(value: float, unit: str, expected: str) -> None:
    assert units.quantity(value, unit) == expected


def test_durations() -> None:
    shown = [units.duration(s) for s in (12345.0, 0.99951, 7.85, 4.56e-3, 1.23e-5, 4e-8)]
    assert shown == ["12,345 s", "1 s", "7.85 s", "4.56 ms", "12.3 us", "0.04 us"]
