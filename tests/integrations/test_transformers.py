"""The export format `mla_opt` of transformers: config, exporter, runner."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import DynamicCache  # noqa: E402
from transformers.exporters import AutoExportConfig, AutoHfExporter, OnnxExporter  # noqa: E402
from transformers.exporters.exporter_dynamo import register_pytree_node  # noqa: E402
from transformers.exporters.metadata import ExportMetadata, record_output_structure  # noqa: E402
from transformers.exporters.runners import OnnxModelRunner  # noqa: E402
from transformers.modeling_outputs import CausalLMOutputWithPast  # noqa: E402

import mla_opt  # noqa: E402
from mla_opt.integrations.options import OPTIONS  # noqa: E402
from mla_opt.integrations.transformers import (  # noqa: E402
    MlaOptConfig,
    MlaOptExporter,
    MlaOptModelRunner,
)
from mla_opt.kernels import kernel_available  # noqa: E402
from tests.exports.cache import kept_export  # noqa: E402

#: Of transformers' own exporter, whose names of caches the runner has to know.
EXPORT = "deepseek_v3-hf-opset20-sdpa-cache-decode"
LAYERS, C, R, CAPACITY = 2, 48, 8, 24
PROMPTS = torch.tensor([[3, 14, 15, 92, 65], [35, 8, 9, 7, 9]])


def metadata() -> ExportMetadata:
    told = ExportMetadata(export_dtype="float32")
    rows = [(torch.zeros(2, 1, 1, C), torch.zeros(2, 1, 1, R)) for _ in range(LAYERS)]
    outputs = CausalLMOutputWithPast(
        logits=torch.zeros(2, 1, 97), past_key_values=DynamicCache(rows)
    )
    record_output_structure(told, outputs)
    return told


@pytest.fixture(scope="module", autouse=True)
def _caches_are_nodes() -> None:
    """As an export registers them."""
    if DynamicCache not in torch.utils._pytree.SUPPORTED_NODES:
        register_pytree_node(DynamicCache)


@pytest.fixture(scope="module")
def original() -> OnnxModelRunner:
    return OnnxModelRunner.from_program(ir.load(kept_export(EXPORT)), metadata())


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> MlaOptExporter:
    """One that need not export: the graph is one that was kept."""

    def kept(self: Any, model: Any, sample_inputs: Any, config: Any) -> Any:
        return ir.load(kept_export(EXPORT)), metadata()

    monkeypatch.setattr(OnnxExporter, "export_program", kept)
    return MlaOptExporter()


def runner(exporter: MlaOptExporter, **options: Any) -> MlaOptModelRunner:
    config = MlaOptConfig(verify=False, **options)
    program, told = exporter.export_program(None, {}, config)
    return MlaOptModelRunner.from_program(program, told)


def empty(batch: int = 2) -> DynamicCache:
    rows = [(torch.zeros(batch, 1, 0, C), torch.zeros(batch, 1, 0, R)) for _ in range(LAYERS)]
    return DynamicCache(rows)


def call(run: Any, ids: Any, cache: DynamicCache) -> Any:
    past = cache.layers[0].keys.shape[2]
    positions = torch.arange(past, past + ids.shape[1]).expand(ids.shape[0], -1)
    return run(input_ids=ids, position_ids=positions, past_key_values=cache)


def generated(run: Any, prompts: Any, steps: int) -> list[Any]:
    """Logits of the last token, call for call."""
    said, cache, ids = [], empty(len(prompts)), prompts
    for _ in range(steps):
        outputs = call(run, ids, cache)
        cache, last = outputs.past_key_values, outputs.logits[:, -1]
        said.append(last.clone())
        ids = last.argmax(-1, keepdim=True)
    return said


def test_the_config_has_the_options_of_optimize() -> None:
    fields = {each.name: each.default for each in dataclasses.fields(MlaOptConfig)}
    assert {name: fields[name] for name in OPTIONS} == {
        name: each.default for name, each in OPTIONS.items()
    }


def test_the_format_is_registered() -> None:
    config = AutoExportConfig.from_dict({"export_format": "mla_opt", "cache": "static:32"})
    assert isinstance(config, MlaOptConfig)
    assert config.cache == "static:32"
    assert isinstance(AutoHfExporter.from_config(config), MlaOptExporter)


@pytest.mark.parametrize(
    "options",
    [
        {"cache": "packed"},
        {"cache": "static"},
        {"cache": "static:32", "cache_type": "int8"},
        {"target": "tensorrt", "cache": "static:32"},
        {"target": "onnxruntime-paged"},
        {"absorb": "all"},
    ],
)
def test_what_the_runner_cannot_use_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(mla_opt.InputError):
        MlaOptConfig(**options)


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
@pytest.mark.parametrize("cache", ["keep", f"static:{CAPACITY}"])
def test_a_component_generates_as_before(
    exporter: MlaOptExporter, original: OnnxModelRunner, cache: str, target: Any
) -> None:
    run = runner(exporter, cache=cache, target=target)
    (report,) = exporter.reports
    assert len(report.sites) == LAYERS
    for got, wanted in zip(generated(run, PROMPTS, 8), generated(original, PROMPTS, 8)):
        torch.testing.assert_close(got, wanted, atol=2e-4, rtol=0)


def test_rows_stay_where_they_are(exporter: MlaOptExporter, original: OnnxModelRunner) -> None:
    run = runner(exporter, cache=f"static:{CAPACITY}")
    first = call(run, PROMPTS, empty()).past_key_values
    places = [layer.keys.data_ptr() for layer in first.layers]
    second = call(run, PROMPTS[:, :1], first).past_key_values
    assert [layer.keys.data_ptr() for layer in second.layers] == places
    assert second.layers[0].values.shape == (2, 1, 6, R)
    wanted = call(original, PROMPTS[:, :1], call(original, PROMPTS, empty()).past_key_values)
    torch.testing.assert_close(second.layers[1].keys, wanted.past_key_values.layers[1].keys)


def test_rows_of_others_are_copied_in(exporter: MlaOptExporter, original: OnnxModelRunner) -> None:
    """Those of a prompt that another runner read, another batch, and sequences in another order."""
    run = runner(exporter, cache=f"static:{CAPACITY}")
    generated(run, PROMPTS, 2)
    cache = call(original, PROMPTS[:1], empty(1)).past_key_values
    wanted = call(original, PROMPTS[:1, :2], cache).logits
    cache = call(original, PROMPTS[:1], empty(1)).past_key_values
    torch.testing.assert_close(call(run, PROMPTS[:1, :2], cache).logits, wanted, atol=2e-4, rtol=0)

    cache = call(run, PROMPTS, empty()).past_key_values
    turned = DynamicCache([(each.keys.flip(0), each.values.flip(0)) for each in cache.layers])
    got = call(run, PROMPTS.flip(0)[:, :1], turned).logits
    wanted = call(original, PROMPTS[:, :1], call(original, PROMPTS, empty()).past_key_values).logits
    torch.testing.assert_close(got.flip(0), wanted, atol=2e-4, rtol=0)

    cache = call(run, PROMPTS, empty()).past_key_values
    for layer in cache.layers:  # views of the buffers, as a cache made anew has not
        layer.keys, layer.values = layer.keys[:1], layer.values[:1]
    alone = call(run, PROMPTS[:1, :1], cache)
    torch.testing.assert_close(alone.logits, wanted[:1], atol=2e-4, rtol=0)
    assert alone.past_key_values.layers[0].keys.shape == (1, 1, 6, C)


def test_a_full_cache_is_refused(exporter: MlaOptExporter) -> None:
    run = runner(exporter, cache="static:6")
    cache = call(run, PROMPTS, empty()).past_key_values
    with pytest.raises(mla_opt.InputError, match=r"5 past rows and 2 new ones .* static:ROWS"):
        call(run, PROMPTS[:, :2], cache)


def test_what_is_missing_is_named(exporter: MlaOptExporter) -> None:
    run = runner(exporter, cache="static:6")
    with pytest.raises(ValueError, match=r"past_key_values\.layers\.0\.keys"):
        run(input_ids=PROMPTS, position_ids=PROMPTS)
    with pytest.raises(ValueError, match="position_ids"):
        run(input_ids=PROMPTS, past_key_values=empty())


@pytest.mark.skipif(not kernel_available(), reason="the kernels are not built")
def test_the_kernels_are_used(exporter: MlaOptExporter, monkeypatch: Any, tmp_path: Path) -> None:
    """The optimized graph still has the operator, which ONNX Runtime inlines without a kernel."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    kept = tmp_path / "kept.onnx"
    options.optimized_model_filepath = str(kept)
    monkeypatch.setattr(onnxruntime, "SessionOptions", lambda: options)
    runner(exporter, cache="keep")
    assert b"MultiHeadLatentAttention" in kept.read_bytes()
