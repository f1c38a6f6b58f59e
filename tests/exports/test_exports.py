"""The harness itself: exported files load, and compute what the model code computes."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import onnxruntime

from tests.exports import cache, controls, expanded_cache, matrix, oracle
from tests.exports.spec import ExportSpec

SPECS = [
    ExportSpec("deepseek_v3"),
    ExportSpec("deepseek_v3", opset=23, attention="eager", cache=False),
    ExportSpec("deepseek_v3", exporter="torchscript"),
    ExportSpec("deepseek_v2", opset=23),
    ExportSpec("deepseek_v32"),
    ExportSpec("deepseek_v3", exporter="hf", opset=20, component="decode"),
]
#: (batch, query, past): first call, step, chunk on a past.
SIZES = [(1, 4, 0), (2, 6, 0), (3, 1, 9), (2, 3, 7)]
TOLERANCE = 1e-4


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.fixture(params=SPECS, ids=lambda spec: spec.id)
def spec(request: pytest.FixtureRequest) -> ExportSpec:
    return request.param


@pytest.mark.parametrize("left_padding", [0, 2])
def test_the_file_computes_what_torch_computes(spec: ExportSpec, left_padding: int) -> None:
    run = session(cache.exported(spec))
    for batch, query, past in SIZES:
        sizes = (batch, query, past) if spec.cache else (batch, query + past, 0)
        feed = oracle.example_feeds(spec, *sizes, left_padding=left_padding)
        truth, found = oracle.run_torch(spec, feed), oracle.run_onnx(run, feed)
        assert oracle.difference(spec, feed, truth, found) < TOLERANCE, sizes


def test_five_decode_steps_stay_together(spec: ExportSpec) -> None:
    if not spec.cache:
        pytest.skip("no cache to step with")
    run = session(cache.exported(spec))
    feed = oracle.example_feeds(spec, 2, 4, 0, left_padding=1)
    for step in range(5):
        truth, found = oracle.run_torch(spec, feed), oracle.run_onnx(run, feed)
        assert oracle.difference(spec, feed, truth, found) < TOLERANCE, step
        feed = oracle.next_feeds(spec, feed, found)


@pytest.mark.skipif(
    expanded_cache.VARIABLE not in os.environ,
    reason=f"{expanded_cache.VARIABLE} names no Python with transformers 4.57",
)
@pytest.mark.parametrize(
    "exporter", ["dynamo457", pytest.param("optimum457", marks=pytest.mark.sweep)]
)
def test_the_expanded_cache_export_computes_what_torch_computes(exporter: str) -> None:
    spec = ExportSpec("deepseek_v3", exporter=exporter)
    run = session(cache.exported(spec))
    for sizes in [(2, 1, 7)]:  # each is a process of PyTorch
        feed = oracle.example_feeds(spec, *sizes, left_padding=1)
        truth, found = oracle.run_torch(spec, feed), oracle.run_onnx(run, feed)
        assert oracle.difference(spec, feed, truth, found) < TOLERANCE, sizes


def test_an_exporter_failure_is_one_line() -> None:
    with pytest.raises(cache.ExportError, match=r"UnsupportedOperatorError: .*aten::polar"):
        cache.exported(ExportSpec("deepseek_v2", exporter="torchscript"))


def test_the_genuine_block_runs() -> None:
    run = session(controls.exported_control(controls.GENUINE.name))
    feed = controls.example_inputs(controls.GENUINE.name, batch=3, length=11)
    assert run.run(None, feed)[0].shape == feed["hidden"].shape


def test_specs_are_named_apart() -> None:
    counts = Counter(spec.id for spec in matrix.specs())
    assert max(counts.values()) == 1
    assert all(ExportSpec.from_json(spec.to_json()) == spec for spec in matrix.specs())
