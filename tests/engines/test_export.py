"""The folder that `mla-opt export` writes, and everything it refuses before there is one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import onnx
import pytest
from typer.main import get_command

from mla_opt.cli._app import app
from mla_opt.cli._export_modes import WORKS_IN, Mode
from mla_opt.engines import export as exporting
from mla_opt.engines import plugin_library
from mla_opt.engines.manifest import Manifest, read_manifest
from mla_opt.engines.plugin_library import check_plugin
from mla_opt.engines.schema import ENGINE
from mla_opt.engines.tensorrt_library import TensorRT
from mla_opt.errors import InputError
from mla_opt.geometry import MlaGeometry
from mla_opt.models import demo_model
from mla_opt.runtimes.onnxruntime import session
from tests.cli.conftest import run  # noqa: F401 (a fixture)
from tests.end_to_end.command import files
from tests.engines.fake_tensorrt import fake
from tests.engines.token_model import token_model
from tests.graphs.latent_block import Block, build

ROWS = ("--rows", "64", "--batch", "2", "--prompt", "32")
ONNX_ONLY = (*ROWS, "--onnx-only", "--no-verify")


@pytest.fixture
def cli(run, tmp_path):  # noqa: F811
    def call(*options, source=None, code=0):
        result = run("export", source or demo_model(), "-o", tmp_path / "out", *options)
        assert result.exit_code == code, result.stderr
        return result.stderr if code else result.stdout

    return call


def test_onnx_files_and_a_manifest(cli, tmp_path):
    said = cli(*ROWS, "--onnx-only", "--precision", "float16")
    assert "ONNX files, no engines in float16, verified" in said
    made = files(tmp_path / "out")
    assert set(made) == {"prefill.onnx", "decode.onnx", "manifest.json"}
    content = json.loads(made["manifest.json"])
    jsonschema.validate(content, ENGINE.load())
    manifest = read_manifest(tmp_path / "out")
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert (manifest.rows, manifest.past_len, manifest.builder) == (64, "past_len", None)
    assert manifest.plugin is None
    assert said.count("note: ") == 1
    assert "layers.0.self_attn and 1 more: the plugin has no kernel for C=64 and R=16" in said
    assert "decode: 2 attentions as operators" in said
    assert {each.lowered for each in manifest.phase("decode").attentions} == {"operators"}
    assert len(manifest.phase("decode").notes) == 1
    for name in ("prefill.onnx", "decode.onnx"):
        onnx.checker.check_model(str(tmp_path / "out" / name), full_check=True)
        session(tmp_path / "out" / name, kernel=False)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model with the widths of DeepSeek-V2-Lite, which the plugin has kernels for."""
    return token_model(tmp_path_factory.mktemp("wide") / "wide.onnx")


@pytest.mark.parametrize(("options", "operators"), [((), 1), (("--no-plugin",), 0)])
def test_onnx_files_of_released_widths(cli, tmp_path, wide, options, operators):
    said = cli(*ONNX_ONLY, *options, source=wide)
    assert "note:" not in said
    manifest = read_manifest(tmp_path / "out")
    decode = onnx.load(tmp_path / "out" / "decode.onnx", load_external_data=False)
    assert [n.op_type for n in decode.graph.node].count("LatentAttention") == operators
    assert (manifest.plugin is not None) == bool(operators)
    (attention,) = manifest.phase("decode").attentions
    assert attention.lowered == ("plugin" if operators else "operators")
    assert manifest.geometries[attention.name] == MlaGeometry(16, 128, 64, 128, 512, None, 256)


def test_caches_and_shapes_as_the_manifest_tells_them(cli, tmp_path):
    cli(*ONNX_ONLY)
    manifest = read_manifest(tmp_path / "out")
    decode = manifest.phase("decode")
    inputs = {each.name: each for each in decode.inputs}
    outputs = {each.name: each for each in decode.outputs}
    assert len(manifest.caches) == 2
    for cache in manifest.caches:
        assert inputs[cache.input].shape[1:] == outputs[cache.output].shape[1:]
        assert inputs[cache.input].shape[1:] == (1, 64, cache.width)
        assert inputs[cache.input].dtype == outputs[cache.output].dtype == "bfloat16"
    assert inputs["past_len"].profile == ((1,), (2,), (2,))
    assert set(manifest.geometries) == {each.name for each in decode.attentions}


def test_a_folder_that_is_there(cli, tmp_path):
    cli(*ONNX_ONLY)
    before = files(tmp_path / "out")
    assert "is there already; give another folder, or --force" in cli(*ONNX_ONLY, code=2)
    assert files(tmp_path / "out") == before
    cli(*ONNX_ONLY, "--force", "--precision", "float16")
    assert read_manifest(tmp_path / "out").precision == "float16"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_holds_the_input_is_not_replaced(cli, tmp_path):
    cli(*ONNX_ONLY)
    source = tmp_path / "out" / "source.onnx"
    source.write_bytes(demo_model().read_bytes())
    link = tmp_path / "link.onnx"
    link.symlink_to(source)
    for given in (source, link):
        told = cli(*ONNX_ONLY, "--force", source=given, code=2)
        assert "holds the input" in told
    assert source.exists()
    built = (*ROWS, "--runtime", "rtx", "--sm", "89", "--timing-cache", link)
    told = cli(*built, "-o", tmp_path / "new", source=source, code=2)
    assert "is read as an input" in told


def test_a_folder_of_something_else(cli, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("all of it")
    assert "is there and is no export" in cli(*ONNX_ONLY, "--force", code=2)
    assert files(tmp_path / "out") == {"thesis.txt": b"all of it"}


def test_nothing_is_left_of_what_failed(cli, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise InputError("not today")

    monkeypatch.setattr(exporting, "write_text", fail)
    assert "not today" in cli(*ONNX_ONLY, code=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rows", "many"), "--rows: 'many' is not MOST"),
        (("--batch", "0"), "--batch: 1,0,0: must begin at 1 or above, and must not fall"),
        (("--context", "32"), "context goes up to 32 tokens, and the caches have 64 rows"),
        (("--prompt", "128"), "a prompt of 128 tokens does not fit in a cache of 64 rows"),
        (("--rows", "16,64"), "--rows: '16,64' is not one number"),
    ],
)
def test_options_that_make_no_sense(cli, tmp_path, options, message):
    assert message in cli(*ONNX_ONLY, *options, code=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--runtime", "rtx", "--sm", "hopper"), "--sm: 'hopper' is no compute capability"),
        (("--runtime", "rtx"), "needs to know what to build for (--sm 89,120)"),
        (("--no-plugin", "--embed-plugin"), "there is no plugin to embed"),
        (("--no-plugin", "--plugin", "p.so"), "the plugin p.so would not be used (--no-plugin)"),
    ],
)
def test_options_that_contradict_each_other(cli, tmp_path, options, message):
    assert message in cli(*ROWS, *options, code=2)
    assert list(tmp_path.iterdir()) == []


#: The options that choose a mode, and a value for each option that takes one.
CHOICES = {
    Mode.TENSORRT: (),
    Mode.RTX: ("--runtime", "rtx"),
    Mode.ONNX_ONLY: ("--onnx-only",),
    Mode.BUNDLE: ("--to", "onnxruntime"),
    Mode.SERVER: ("--to", "triton-server"),
}
VALUES = {"runtime": "tensorrt", "precision": "auto", "instances": "1", "cache_type": "keep"}


def parameters():
    (command,) = (c for name, c in get_command(app).commands.items() if name == "export")
    return [each for each in command.params if each.name != "help"]


def test_every_option_says_where_it_works():
    assert {each.name for each in parameters()} == set(WORKS_IN)


@pytest.mark.parametrize("mode", Mode)
def test_options_that_do_nothing(cli, mode):
    """All of them, in every mode; their values are the ones that they have anyway."""
    refused = [each for each in parameters() if mode not in WORKS_IN[each.name]]
    assert refused
    for each in refused:
        if each.name == "onnx_only" and mode in (Mode.TENSORRT, Mode.RTX):
            continue  # it would choose another mode
        value = () if each.is_flag else (VALUES.get(each.name, "1"),)
        told = cli(*CHOICES[mode], each.opts[0], *value, code=2)
        flag = f"--{each.name.replace('_', '-')}"
        assert f"{flag} does nothing with {mode.value}; it is for --" in told


def test_a_model_without_latent_attention(cli, tmp_path):
    source = tmp_path / "plain.onnx"
    onnx.save(build(Block(cache="none")), source)
    told = cli(*ONNX_ONLY, source=source, code=2)
    assert "does not append to a cache of latent rows" in told


# What is not the model


def use(monkeypatch, runtime="rtx", **attributes):
    """Puts a TensorRT in the place of the installed one."""
    module, _ = fake()
    for name, value in attributes.items():
        setattr(module, name, value)
    monkeypatch.setattr(exporting, "load", lambda _: TensorRT(module, runtime, module.logger))
    return module


def test_no_tensorrt_is_said_before_the_model_is_read(cli, tmp_path, monkeypatch):
    def missing(_):
        raise InputError("tensorrt cannot be imported")

    def read(_):
        raise AssertionError

    monkeypatch.setattr(exporting, "load", missing)
    monkeypatch.setattr(exporting, "read_model", read)
    assert "tensorrt cannot be imported" in cli(*ROWS, code=2)


def test_a_compute_capability_that_it_lacks(cli, monkeypatch):
    use(monkeypatch)
    assert "builds for no SM 90, only for 89, 120" in cli(
        *ROWS, "--runtime", "rtx", "--no-plugin", "--sm", "90", code=2
    )


def test_no_gpu_for_tensorrt(cli, monkeypatch):
    use(monkeypatch, "tensorrt")

    def none():
        raise InputError("the CUDA driver finds no GPU (error 100)")

    monkeypatch.setattr(exporting, "current_device", none)
    assert "the CUDA driver finds no GPU" in cli(*ROWS, "--no-plugin", code=2)


def test_no_plugin_library(cli, monkeypatch, tmp_path, wide):
    use(monkeypatch)
    monkeypatch.setattr(exporting, "check_plugins", lambda _: None)
    options = (*ROWS, "--runtime", "rtx", "--sm", "89,120")
    monkeypatch.setenv("MLA_OPT_CUDA_KERNELS", str(tmp_path))
    for named in ((), ("--plugin", tmp_path / "none.so")):
        said = cli(*options, *named, code=2, source=wide)
        assert "the plugin library is not there. Build it: mla-opt build-kernels --arch" in said
        assert "--arch 89,120 --tensorrt-headers DIR (it needs nvcc; DIR is" in said


def test_a_plugin_that_no_attention_would_use(cli, monkeypatch, tmp_path):
    use(monkeypatch)
    path = library(monkeypatch, tmp_path, "80")
    options = (*ROWS, "--runtime", "rtx", "--sm", "89")
    for named in (("--plugin", path), ("--embed-plugin",)):
        said = cli(*options, *named, code=2)
        assert "no attention of this model has widths that it has kernels for (C=512" in said


def test_a_body_for_the_plugin_leaves_nothing(cli, monkeypatch, tmp_path, wide):
    """The fake parser makes no plugin of anything."""
    module = use(monkeypatch)
    module.inputs = [SimpleNamespace(name="past_len", is_shape_tensor=False)]
    library = tmp_path / "plugin.so"
    library.write_bytes(b"")
    monkeypatch.setattr(exporting, "check_plugins", lambda _: None)
    monkeypatch.setattr(exporting, "check_plugin", lambda *_: None)
    module.brought = [
        SimpleNamespace(name="LatentAttention", plugin_namespace="mla_opt", plugin_version="1")
    ]
    options = ("--runtime", "rtx", "--sm", "89", "--plugin", library, "--no-verify")
    assert "though the plugin was asked for" in cli(*ROWS, *options, code=2, source=wide)
    assert [each.name for each in tmp_path.iterdir()] == ["plugin.so"]


def test_dims_without_a_kernel_are_said_before_anything_is_lowered(
    cli, monkeypatch, tmp_path, wide
):
    use(monkeypatch)
    path = library(monkeypatch, tmp_path, "80", kernels=False)
    monkeypatch.setattr(exporting, "check_plugins", lambda _: None)
    monkeypatch.setattr(exporting, "_lowered", lambda *_: pytest.fail("it was lowered"))
    options = (*ROWS, "--runtime", "rtx", "--sm", "89", "--plugin", path)
    assert "has no kernel for" in cli(*options, code=2, source=wide)


# The plugin library

LITE = MlaGeometry(16, 128, 64, 128, 512)


def library(monkeypatch, tmp_path: Path, *architectures: str, kernels: bool = True) -> Path:
    path = tmp_path / "plugin.so"
    path.write_bytes(b"")
    opened = SimpleNamespace(
        architectures=architectures, workspace_bytes=lambda *_: 4096 if kernels else 0
    )
    monkeypatch.setattr(plugin_library, "CudaLibrary", lambda _: opened)
    return path


@pytest.mark.parametrize(
    ("has", "wanted"),
    [(["80"], [80, 86, 89, 90, 120]), (["86", "90a"], [89, 90]), (["80", "120"], [86, 120])],
)
def test_code_runs_on_what_is_newer(monkeypatch, tmp_path, has, wanted):
    check_plugin(library(monkeypatch, tmp_path, *has), [("a", LITE)], wanted)


@pytest.mark.parametrize(
    ("has", "wanted", "lacks"),
    [(["89"], [86], "86"), (["90a"], [89, 100], "89, 100"), (["80", "120"], [75, 90], "75, 90")],
)
def test_an_architecture_that_the_library_lacks(monkeypatch, tmp_path, has, wanted, lacks):
    path = library(monkeypatch, tmp_path, *has)
    with pytest.raises(InputError, match=f"has code for {', '.join(has)}, none for {lacks}; build"):
        check_plugin(path, [], wanted)


def test_dims_that_the_library_has_no_kernel_for(monkeypatch, tmp_path):
    path = library(monkeypatch, tmp_path, "80", kernels=False)
    with pytest.raises(
        InputError, match=r"has no kernel for layer \(C=512, R=64\); build it again"
    ):
        check_plugin(path, [("layer", LITE)], [80])


def test_a_library_that_is_none(tmp_path):
    path = tmp_path / "plugin.so"
    path.write_bytes(b"no library")
    with pytest.raises(InputError, match="is no plugin of this release"):
        check_plugin(path, [], [])


# Manifests


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "has schema version None, this release reads 2"),
        ('{"schema_version": 1}', "has schema version 1, this release reads 2"),
        ('{"schema_version": 2}', "Manifest"),
    ],
)
def test_damaged_manifests(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path)


def test_no_manifest(tmp_path):
    with pytest.raises(InputError, match="give the folder that `mla-opt export` wrote"):
        read_manifest(tmp_path)
