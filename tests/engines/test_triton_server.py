"""Model repositories, as the server's own message classes read them."""

from __future__ import annotations

import json
import sys

import pytest

import mla_opt
from mla_opt.engines.export import ExportOptions, export
from mla_opt.engines.manifest import MANIFEST, Builder, File, read_manifest
from mla_opt.engines.profiles import Range, Ranges
from mla_opt.engines.triton_server import export_repository, of_model
from mla_opt.errors import InputError
from mla_opt.files.model_io import write_model
from mla_opt.models import demo_model
from mla_opt.report.plain import to_plain
from tests.cli.conftest import run  # noqa: F401 (a fixture)

messages = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="needs tritonclient, which test installs"
)
ROWS = 64


def read(folder):
    from google.protobuf import text_format

    return text_format.Parse((folder / "config.pbtxt").read_text(), messages.ModelConfig())


@pytest.fixture(scope="module")
def optimized(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "demo.mla.onnx"
    model = mla_opt.optimize(demo_model(), cache=f"static:{ROWS}", verify=False).model
    write_model(model, path)
    return path


@pytest.fixture
def engines(tmp_path):
    """An export as a machine with TensorRT would write it; the engine is none."""
    one = Range(1, 1, 1)
    ranges = Ranges(ROWS, one, Range(1, 8, 32), Range(1, 1, 32), Range(1, 8, ROWS))
    folder = tmp_path / "engines"
    export(demo_model(), folder, ExportOptions(ranges, onnx_only=True, verify=False))
    return folder


def with_engine(folder, runtime="tensorrt", plugin=True):
    content = json.loads((folder / MANIFEST).read_text())
    (folder / "decode.engine").write_bytes(b"plan")
    (folder / "plugin.so").write_bytes(b"code")
    content["phases"][1]["engine"] = to_plain(File("decode.engine", "0", 4))
    content["builder"] = to_plain(Builder(runtime, "11.4", (90,), "a GPU"))
    content["plugin"]["library"] = to_plain(File("plugin.so", "0", 4)) if plugin else None
    (folder / MANIFEST).write_text(json.dumps(content))
    return folder


def test_an_onnx_file(optimized, tmp_path):
    folder = export_repository(optimized, tmp_path, "demo")
    config = read(folder)
    assert (config.name, config.backend, config.max_batch_size) == ("demo", "onnxruntime", 0)
    served = of_model(optimized)
    kept = {each.input for each in served.caches}
    wanted = [each for each in served.inputs if each.name not in kept]
    assert [each.name for each in config.input] == [each.name for each in wanted]
    assert {each.name: list(each.dims) for each in config.input} == {
        each.name: [size if isinstance(size, int) else -1 for size in each.shape] for each in wanted
    }
    assert [each.name for each in config.output] == ["logits"]
    assert (folder / "1" / "model.onnx").read_bytes() == optimized.read_bytes()


def test_the_server_keeps_the_caches_in_place(optimized, tmp_path):
    states = read(export_repository(optimized, tmp_path, "demo")).sequence_batching.state
    assert len(states) == 2
    for state, cache in zip(states, of_model(optimized).caches):
        assert (state.input_name, state.output_name) == (cache.input, cache.output)
        assert list(state.dims) == [-1, 1, ROWS, cache.width]
        assert state.use_same_buffer_for_input_output
        (first,) = state.initial_state
        assert first.zero_data
        assert list(first.dims) == [1, 1, ROWS, cache.width]
        assert state.data_type == first.data_type == messages.TYPE_FP32


def test_engines_and_their_plugin(engines, tmp_path):
    folder = export_repository(with_engine(engines), tmp_path / "models", "demo")
    config = read(folder)
    assert config.backend == "tensorrt"
    assert (folder / "1" / "model.plan").read_bytes() == b"plan"
    assert (folder / "plugin.so").read_bytes() == b"code"
    assert "--backend-config=tensorrt,plugins=" in (folder / "README.md").read_text()
    assert {each.data_type for each in config.sequence_batching.state} == {messages.TYPE_BF16}
    names = {each.name for each in config.input}
    assert names == {each.name for each in read_manifest(engines).phase("decode").inputs} - {
        each.input for each in read_manifest(engines).caches
    }


def test_engines_that_carry_their_plugin(engines, tmp_path):
    folder = export_repository(with_engine(engines, plugin=False), tmp_path / "models", "demo")
    assert "plugins=" not in (folder / "README.md").read_text()
    assert sorted(each.name for each in folder.iterdir()) == ["1", "README.md", "config.pbtxt"]


def test_a_folder_without_engines(engines, tmp_path):
    with pytest.raises(InputError, match="holds no engines; export it again without --onnx-only"):
        export_repository(engines, tmp_path / "models", "demo")


def test_engines_of_rtx(engines, tmp_path):
    with pytest.raises(InputError, match="are of TensorRT-RTX, which the server has no backend"):
        export_repository(with_engine(engines, "rtx"), tmp_path / "models", "demo")
    assert not (tmp_path / "models").exists()


def test_a_model_whose_caches_grow(tmp_path):
    with pytest.raises(InputError, match="the server keeps buffers of a fixed size"):
        export_repository(demo_model(), tmp_path, "demo")


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b"])
def test_names_that_are_none(optimized, tmp_path, name):
    with pytest.raises(InputError, match="is no name for a model"):
        export_repository(optimized, tmp_path, name)


def test_no_message_classes(optimized, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(InputError, match=r"pip install 'tritonclient\[grpc\]'"):
        export_repository(optimized, tmp_path, "demo")


def test_a_folder_that_holds_the_source_is_not_replaced(engines):
    source = with_engine(engines)
    with pytest.raises(InputError, match="holds the input"):
        export_repository(source, source.parent, source.name, force=True)
    assert (source / "decode.engine").read_bytes() == b"plan"


def test_the_command(run, optimized, tmp_path):  # noqa: F811
    arguments = ("export", optimized, "--to", "triton-server", "-o", tmp_path / "models")
    done = run(*arguments)
    assert done.exit_code == 0, done.stderr
    assert "models/demo: a model for the Triton Inference Server, not yet loaded" in done.stdout
    again = run(*arguments)
    assert again.exit_code == 2
    assert "is there already" in again.stderr
    assert run(*arguments, "--force").exit_code == 0
    assert run("export", tmp_path / "none", *arguments[2:]).exit_code == 2
