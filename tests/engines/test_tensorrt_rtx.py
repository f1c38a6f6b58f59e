"""What TensorRT-RTX makes of the exported graphs: every variant is parsed and built.

The default run has one of each kind; ``-m engines`` has all.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import jsonschema
import onnx
import pytest

from mla_opt.engines.schema import ENGINE
from mla_opt.models import demo_model
from mla_opt.operator.contract import OP_TYPES
from tests.engines.rtx import (
    attempt,
    export,
    manifest,
    model,
    needs_headers,
    needs_rtx,
    process,
)
from tests.exports.cache import exported
from tests.exports.spec import ExportSpec

pytestmark = needs_rtx

MOST_KERNELS = 5
SIZES = ("--rows", "1k", "--batch", "4", "--prompt", "128,512", "--step", "4", "--no-verify")


def variants(*default: tuple[str, str]):
    """Dims and precisions; those of ``default`` run by default."""
    return [
        pytest.param(
            dims,
            precision,
            marks=[] if (dims, precision) in default else pytest.mark.engines,
            id=f"{dims}-{precision}",
        )
        for dims in ("lite", "v3")
        for precision in ("float16", "bfloat16")
    ]


@pytest.mark.parametrize(("dims", "precision"), variants(("lite", "float16")))
def test_without_the_plugin(tmp_path, dims, precision):
    out = tmp_path / "out"
    said = export(model(tmp_path, dims), out, *SIZES, "--no-plugin", "--precision", precision)
    assert "1 attentions as fused" in said
    made = manifest(out)
    prefill, decode = made.phase("prefill"), made.phase("decode")
    assert [each.became for each in prefill.attentions] == ["fused"]
    assert [len(each.kernels) for each in prefill.attentions] == [1]
    assert [each.became for each in decode.attentions] == ["operators"]
    assert all(len(each.kernels) <= MOST_KERNELS for each in decode.attentions)
    assert prefill.cache_in_place
    assert decode.cache_in_place
    assert (made.plugin, made.precision) == (None, precision)
    check_files(out)


@needs_headers
@pytest.mark.parametrize(("dims", "precision"), variants(("lite", "bfloat16")))
def test_with_the_plugin(tmp_path, plugin, dims, precision):
    out = tmp_path / "out"
    options = (*SIZES, "--plugin", plugin, "--precision", precision)
    export(model(tmp_path, dims), out, *options)
    made = manifest(out)
    (attention,) = made.phase("decode").attentions
    assert attention.became == "plugin"
    assert len(attention.kernels) == 1
    assert made.phase("decode").cache_in_place
    assert made.phase("prefill").attentions[0].became == "fused"
    assert made.plugin is not None
    assert made.plugin.library is not None
    check_files(out)


@needs_headers
@pytest.mark.engines
@pytest.mark.parametrize(
    "options",
    [
        {"bias": "boolean"},
        {"sink": True},
        {"bias": None},
    ],
    ids=str,
)
def test_every_kind_of_operand_of_the_plugin(tmp_path, plugin, options):
    out, source = tmp_path / "out", model(tmp_path, "lite", **options)
    export(source, out, *SIZES, "--plugin", plugin)
    assert manifest(out).phase("decode").attentions[0].became == "plugin"


@needs_headers
@pytest.mark.engines
def test_the_engine_may_carry_the_plugin(tmp_path, plugin):
    sizes = {}
    for name, options in (("beside", ()), ("carried", ("--embed-plugin",))):
        out = tmp_path / name
        source = model(tmp_path, "lite")
        export(source, out, *SIZES, "--plugin", plugin, *options)
        made = manifest(out)
        assert made.plugin is not None
        assert (made.plugin.library is None) == (name == "carried")
        engine = made.phase("decode").engine
        assert engine is not None
        sizes[name] = engine.bytes
        check_files(out)
    assert sizes["carried"] - sizes["beside"] > 0.9 * plugin.stat().st_size


FINDS = """
import sys
if "first" in sys.argv:
    import tensorrt_rtx
from mla_opt.engines.tensorrt_library import check_plugins, load
check_plugins(load("rtx"))
"""


@pytest.mark.parametrize("first", [False, True], ids=["by mla_opt", "before mla_opt"])
def test_plugins_are_refused_where_they_would_end_the_process(first):
    """The wheel as pip installs it takes plugins, if nobody has imported it before."""
    done = process([sys.executable, "-c", FINDS, *(["first"] if first else [])])
    assert (done.returncode != 0) == first, done.stderr
    if first:
        assert "cannot open itself as libtensorrt_rtx.so" in done.stderr
        assert "let mla_opt import tensorrt_rtx first" in done.stderr
        assert "ln -s libtensorrt_rtx.so.1 " in done.stderr


BUILD = """
import sys
from pathlib import Path
from mla_opt.engines.build import Plan, build
from mla_opt.engines.manifest import read_manifest
from mla_opt.engines.tensorrt_library import load
folder, plugin, operator = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
profile = {each.name: each.profile for each in read_manifest(folder).phase("decode").inputs}
build(load("rtx"), Plan(folder / "decode.onnx", profile, [operator], plugin, False, [89]))
"""


@needs_headers
@pytest.mark.engines
@pytest.mark.parametrize("named", [OP_TYPES[0], OP_TYPES[-1], None])
def test_a_body_in_the_place_of_the_plugin_is_an_error(tmp_path, plugin, named):
    """An operator that does not name its plugin is parsed by its body, without a word."""
    out = tmp_path / "out"
    made = attempt(model(tmp_path, "lite"), out, *SIZES, "--onnx-only", "--precision", "float16")
    assert made.returncode == 0, made.stderr
    proto = onnx.load(out / "decode.onnx")
    (node,) = (each for each in proto.graph.node if each.op_type == "LatentAttention")
    if named is not None:
        (body,) = (each for each in proto.functions if each.name == node.op_type)
        node.op_type = body.name = named
    else:
        kept = [each for each in node.attribute if not each.name.startswith("plugin_")]
        del node.attribute[:]
        node.attribute.extend(kept)
    onnx.save(proto, out / "decode.onnx")
    done = process([sys.executable, "-c", BUILD, str(out), str(plugin), node.name])
    if named is not None:
        assert done.returncode == 0, done.stderr
    else:
        assert "put the function body in the place of 1 of 1 operators" in done.stderr


def test_a_model_as_an_exporter_wrote_it(tmp_path):
    out, cache = tmp_path / "out", tmp_path / "timing.cache"
    sizes = ("--rows", "64", "--batch", "2", "--prompt", "32", "--timing-cache", cache)
    said = export(demo_model(), out, *sizes)
    assert "verified" in said
    assert "the plugin has no kernel for C=64 and R=16" in said
    assert cache.stat().st_size > 0
    for phase in manifest(out).phases:
        assert len(phase.attentions) == 2
        assert phase.cache_in_place
        assert "unknown" not in {each.became for each in phase.attentions}
    check_files(out)
    names = {each.name for each in manifest(out).phase("decode").inputs}
    assert "past_len" in names


@pytest.mark.engines
@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize(
    "family", ["deepseek_v2_noqlora", "deepseek_v3", "glm4_moe_lite", "longcat_flash", "minicpm3"]
)
def test_exports_of_real_model_code(tmp_path, family, opset):
    pytest.importorskip("transformers")
    out, source = tmp_path / "out", exported(ExportSpec(family, opset=opset))
    sizes = ("--rows", "64", "--batch", "2", "--prompt", "16", "--no-verify")
    export(source, out, *sizes, "--no-plugin")
    made = manifest(out)
    for phase, became, most in (("prefill", "fused", 1), ("decode", "operators", MOST_KERNELS)):
        attentions = made.phase(phase).attentions
        assert {each.became for each in attentions} == {became}
        assert all(len(each.kernels) <= most for each in attentions)
        assert made.phase(phase).cache_in_place


def check_files(folder: Path) -> None:
    """The manifest is valid, and tells the truth about every file but itself."""
    content = json.loads((folder / "manifest.json").read_text())
    jsonschema.validate(content, ENGINE.load())
    made = manifest(folder)
    files = [each for phase in made.phases for each in (*phase.onnx, phase.engine)]
    files += [made.plugin.library] if made.plugin else []
    told = {each.name: (each.sha256, each.bytes) for each in files if each is not None}
    there = {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }
    assert told == there
