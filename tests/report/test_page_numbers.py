"""The page's own script against the cost model: the same numbers at every batch and context."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import resources
from typing import Any

import pytest

from mla_opt import cost_model
from mla_opt.cost_model import COST_FORMS, HARDWARE, Workload
from mla_opt.report.page import PageData, page_data
from mla_opt.report.page.totals import totals_at
from mla_opt.report.site import dtype_bytes
from mla_opt.report.units import duration, quantity
from tests.report import pages

CALLS = ((1, 1, 128), (7, 3, 100), (64, 1, 8192), (2, 170, 65536), (1, 4096, 1 << 20))
#: Also what lies in the middle between two numbers of three digits, and what is rounded up to 1000.
NUMBERS = (0, 1, 999, 1125, 1135, 999.6, 2304, 0.4865, 0.00042, 1.15e9, 2.5e18, 123456789)
SECONDS = (0.0, 4e-8, 1.2345e-5, 0.0009996, 0.0125, 7.85, 999.4, 999.6, 12345.5, 98765.4)

PROGRAM = """
const fs = require("fs");
const { script, data, calls, numbers, seconds } = JSON.parse(fs.readFileSync(0, "utf8"));
const Costs = new Function(script + "; return Costs;")();
const costs = [];
for (const machine of Object.values(data.hardware)) {
  for (const [batch, query, context] of calls) {
    const at = Costs.call(batch, query, context);
    costs.push({
      totals: Costs.totals(data.layers, at, machine),
      layers: data.layers.map((layer) => ({
        after: Costs.formAfter(layer, at),
        crossover: layer.prefill_crossover === null ? null : Costs.crossover(layer, context),
        forms: layer.forms.map(({ form }) => Costs.cost(layer, form, at, machine)),
      })),
    });
  }
}
const units = {
  numbers: numbers.map((number) => Costs.quantity(number, "B")),
  seconds: seconds.map(Costs.duration),
};
const contexts = [128, 8192, 1 << 20, 1000].map(Costs.tokens);
console.log(JSON.stringify({ costs, units, contexts }));
"""


@pytest.fixture(scope="module")
def data() -> PageData:
    """Layers of several families, forms and types."""
    return page_data(pages.mixed())


@pytest.fixture(scope="module")
def told(data: PageData) -> Any:
    """What the page's script says."""
    if (node := shutil.which("node")) is None:
        pytest.skip("needs node, to run the page's script")
    script = resources.files("mla_opt.report.page").joinpath("assets", "costs.js").read_text()
    given = {"script": script, "data": json.loads(data.to_json()), "calls": CALLS}
    given |= {"numbers": NUMBERS, "seconds": SECONDS}
    done = subprocess.run(
        [node, "-e", PROGRAM], input=json.dumps(given), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def points() -> list[tuple[str, Workload]]:
    return [(machine, Workload(*call)) for machine in HARDWARE for call in CALLS]


def test_costs_of_every_form(data: PageData, told: Any) -> None:
    for (machine, workload), point in zip(points(), told["costs"], strict=True):
        for layer, page in zip(data.layers, point["layers"], strict=True):
            size = dtype_bytes(layer.dtype)
            for form, found in zip(COST_FORMS, page["forms"], strict=True):
                true = cost_model.cost(layer.geometry, form, dtype_bytes=size, workload=workload)
                assert found["form"] == form
                assert found["flops"] == pytest.approx(true.flops, rel=1e-12)
                assert found["bytes"] == pytest.approx(true.bytes, rel=1e-12)
                seconds = true.seconds(HARDWARE[machine])
                assert found["seconds"] == pytest.approx(seconds, rel=1e-12)
                assert found["weights"] == cost_model.weight_bytes(layer.geometry, form, size)
                names = [stage["name"] for stage in found["stages"]]
                assert names == [stage.name for stage in true.stages]


def test_totals_and_choices(data: PageData, told: Any) -> None:
    assert len(data.layers) == 3
    changed = set()
    for (machine, workload), point in zip(points(), told["costs"], strict=True):
        true = totals_at(data.layers, workload, HARDWARE[machine])
        sums = point["totals"]
        assert sums["cacheBefore"] == true.cache_before
        assert sums["cacheAfter"] == true.cache_after
        assert sums["secondsBefore"] == pytest.approx(true.seconds_before, rel=1e-12)
        assert sums["secondsAfter"] == pytest.approx(true.seconds_after, rel=1e-12)
        for layer, page in zip(data.layers, point["layers"], strict=True):
            assert page["after"] == layer.form_after(workload)
            changed.add((layer.label, page["after"]))
            limit = layer.geometry.crossover_at(workload.total_len)
            expected = None if limit == float("inf") else pytest.approx(limit, rel=1e-12)
            assert page["crossover"] == expected
    assert len(changed) == 5  # two of three go over to another form for long queries


def test_numbers_are_written_as_elsewhere(told: Any) -> None:
    assert told["units"]["numbers"] == [quantity(number, "B") for number in NUMBERS]
    assert told["units"]["seconds"] == [duration(number) for number in SECONDS]
    assert told["contexts"] == ["128", "8k", "1M", "1000"]


def test_counts_are_linear_at_every_call() -> None:
    """What the page is given is the cost model itself, not a fit to some points of it."""
    for form in COST_FORMS:
        stages = cost_model.stage_terms(pages.V3, form, dtype_bytes=2)
        for call in CALLS:
            workload = Workload(*call)
            true = cost_model.cost(pages.V3, form, dtype_bytes=2, workload=workload).stages
            assert tuple(stage.at(workload) for stage in stages) == true
