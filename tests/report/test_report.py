"""The reports as data: JSON both ways, the schema, and the figures from the cost model."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jsonschema
import pytest

from mla_opt.benchmarking.schema import BENCH
from mla_opt.bundles.schema import BUNDLE
from mla_opt.cost_model import COST_FORMS, Workload
from mla_opt.doctor.schema import DOCTOR
from mla_opt.engines.schema import ENGINE
from mla_opt.report import InspectionReport, OptimizationReport, with_costs
from mla_opt.report.schema import INSPECTION, REPORT, SchemaFile
from tests.report import examples

SCHEMAS = (REPORT, INSPECTION, BENCH, ENGINE, BUNDLE, DOCTOR)
schemas = pytest.mark.parametrize("schema", SCHEMAS, ids=lambda each: each.path.name)


def filled_inspection() -> InspectionReport:
    return with_costs(examples.inspection(), Workload(1, 1, 4096))


def test_optimization_report_round_trip() -> None:
    report = examples.report()
    assert OptimizationReport.from_json(report.to_json()) == report


def test_inspection_report_round_trip() -> None:
    report = filled_inspection()
    assert InspectionReport.from_json(report.to_json()) == report


def test_empty_report_round_trip() -> None:
    assert OptimizationReport.from_json(OptimizationReport().to_json()) == OptimizationReport()


@schemas
def test_schema_on_disk_is_the_one_the_dataclasses_make(schema: SchemaFile) -> None:
    assert schema.path.read_text(encoding="utf-8") == schema.text(), (
        "run python -m mla_opt.report.schema, or its owner's, and raise the version if a field"
        " changed"
    )


@schemas
def test_schema_is_itself_valid(schema: SchemaFile) -> None:
    jsonschema.Draft202012Validator.check_schema(schema.load())


def validator(schema: SchemaFile) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema.load())


def test_reports_validate_against_the_schema() -> None:
    validator(REPORT).validate(json.loads(examples.report().to_json()))
    validator(REPORT).validate(json.loads(OptimizationReport().to_json()))
    validator(INSPECTION).validate(json.loads(filled_inspection().to_json()))
    validator(INSPECTION).validate(json.loads(examples.inspection().to_json()))


def drop_sites(data: dict[str, Any]) -> None:
    del data["sites"]


def unknown_field(data: dict[str, Any]) -> None:
    data["extra"] = 1


def form_of_no_name(data: dict[str, Any]) -> None:
    data["sites"][0]["form"] = "folded"


def text_for_number(data: dict[str, Any]) -> None:
    data["sites"][0]["geometry"]["num_heads"] = "16"


def later_version(data: dict[str, Any]) -> None:
    data["schema_version"] = 2


@pytest.mark.parametrize(
    "spoil", [drop_sites, unknown_field, form_of_no_name, text_for_number, later_version]
)
def test_spoiled_reports_fail_in_schema_and_reader_alike(spoil: Any) -> None:
    data = json.loads(examples.report().to_json())
    spoil(data)
    assert not validator(REPORT).is_valid(data)
    with pytest.raises(ValueError, match=r"report schema version|OptimizationReport"):
        OptimizationReport.from_json(json.dumps(data))


def test_infinite_error_becomes_null() -> None:
    site = examples.site(0, error=float("inf"))
    assert site.certificate_error is None
    report = OptimizationReport(sites=(site,), verification={"error": float("nan")})
    data = json.loads(report.to_json())
    assert data["verification"]["error"] is None


def test_every_object_of_the_schema_is_closed() -> None:
    for schema in SCHEMAS:
        loaded = schema.load()
        for definition in (loaded, *loaded["$defs"].values()):
            assert definition["additionalProperties"] is False
            assert definition["description"]


def test_site_report_cache_figures() -> None:
    expanded, latent = examples.site(0), examples.site(0, family="latent")
    assert expanded.cache_bytes_per_token_before == 20_480
    assert expanded.cache_bytes_per_token_after == 2_304
    assert latent.cache_bytes_per_token_before == latent.cache_bytes_per_token_after == 2_304
    assert examples.site(0, family="none").cache_bytes_per_token_after == 0


def test_site_report_compares_with_what_the_model_did() -> None:
    expanded, latent = examples.site(0), examples.site(0, family="latent")
    assert latent.decode_before.flops > 50 * latent.decode_after.flops
    assert expanded.decode_before.flops < expanded.decode_after.flops
    assert expanded.decode_before.bytes > 2 * expanded.decode_after.bytes
    assert expanded.decode_context == 8192


def test_a_site_left_unabsorbed_costs_what_it_did() -> None:
    kept = examples.site_report(
        examples.SiteFacts(
            "a", examples.V2_LITE, "float16", "none", "asked for", "absorbed", "asked for",
            "expanded", "expanded", "expanded", 0.0, 1, 1,
        )
    )  # fmt: skip
    assert kept.decode_before == kept.decode_after
    assert kept.cache_bytes_per_token_before == kept.cache_bytes_per_token_after == 10_240


def test_costs_are_filled_for_matched_attentions_only() -> None:
    report = with_costs(examples.inspection(), Workload(2, 1, 1024))
    costs = report.attentions[0].costs
    assert costs is not None
    assert (costs.batch, costs.query_len, costs.total_len) == (2, 1, 1024)
    assert [form.form for form in costs.forms] == list(COST_FORMS)
    assert costs.before == "expanded"
    assert costs.prefill_crossover == pytest.approx(1024 * (512 / 3) / (1024 + 512 / 3))
    assert report.attentions[3].costs is None


def test_reports_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        examples.report().sites = ()  # type: ignore[misc]
