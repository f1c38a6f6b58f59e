"""Model repositories, as the server's own message classes read them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import mla_opt
from mla_opt.engines import triton_server
from mla_opt.engines.export import ExportOptions, export
from mla_opt.engines.manifest import MANIFEST, Builder, File, read_manifest
from mla_opt.engines.profiles import Range, Ranges
from mla_opt.engines.triton_config import IDLE_SECONDS, IMAGE, Serving
from mla_opt.engines.triton_server import export_repository, of_model
from mla_opt.errors import InputError, KernelUnavailableError
from mla_opt.files.model_io import write_model
from mla_opt.kernels.library import kernel_library
from mla_opt.models import demo_model
from mla_opt.report.plain import to_plain
from tests.cli.conftest import run  # noqa: F401 (a fixture)
from tests.engines.token_model import token_model

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


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model with the widths of DeepSeek-V2-Lite."""
    return token_model(tmp_path_factory.mktemp("wide") / "wide.onnx")


@pytest.fixture(scope="module")
def exported(wide, tmp_path_factory):
    return onnx_only(wide, tmp_path_factory.mktemp("engines") / "engines")


def onnx_only(model, folder, batch=(1, 1, 1), **options):
    ranges = Ranges(ROWS, Range(*batch), Range(1, 8, 32), Range(1, 1, 32), Range(1, 8, ROWS))
    export(model, folder, ExportOptions(ranges, onnx_only=True, verify=False, **options))
    return folder


@pytest.fixture
def engines(exported, tmp_path):
    """An export as a machine with TensorRT would write it; the engine is none."""
    return shutil.copytree(exported, tmp_path / "engines")


def with_engine(folder, runtime="tensorrt", plugin=True):
    content = json.loads((folder / MANIFEST).read_text())
    (folder / "decode.engine").write_bytes(b"plan")
    (folder / "plugin.so").write_bytes(b"code")
    content["phases"][1]["engine"] = to_plain(File("decode.engine", "0", 4))
    content["builder"] = to_plain(Builder(runtime, "11.4", (90,), "a GPU"))
    if content["plugin"] is not None:
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
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, messages.ModelInstanceGroup.KIND_CPU)
    assert config.sequence_batching.max_sequence_idle_microseconds == IDLE_SECONDS * 1_000_000


def test_onnxruntime_loads_the_kernels_by_the_path_that_the_server_sees(optimized, tmp_path):
    """The server hands the path to ONNX Runtime as it is; so does this, with the server's root."""
    serving = Serving(str(tmp_path / "models"), instances=3)
    folder = export_repository(optimized, tmp_path / "models", "demo", serving)
    config = read(folder)
    assert [each.count for each in config.instance_group] == [3]
    (library,) = config.model_operations.op_library_filename
    assert library == str(folder / kernel_library().name)
    options = ort.SessionOptions()
    options.register_custom_ops_library(library)
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    opened = ort.InferenceSession(folder / "1" / "model.onnx", options)
    caches = {
        each.input: np.zeros((1, 1, each.rows, each.width), np.float32)
        for each in of_model(optimized).caches
    }
    ids = np.arange(3)[None]
    fed = {"input_ids": ids, "position_ids": ids, "attention_mask": np.ones_like(ids)}
    opened.run(None, {**fed, "past_len": np.zeros(1, np.int32), **caches})
    events = json.loads(Path(opened.end_profiling()).read_text())
    ran = [each["args"].get("op_name") for each in events if each.get("cat") == "Node"]
    assert "MultiHeadLatentAttention" in ran  # the kernel: the body is inlined where there is none


def test_no_library_for_standard_operators(tmp_path):
    path = tmp_path / "portable.onnx"
    options = {"target": "portable", "cache": f"static:{ROWS}", "verify": False}
    write_model(mla_opt.optimize(demo_model(), **options).model, path)
    folder = export_repository(path, tmp_path, "demo")
    assert not read(folder).HasField("model_operations")
    assert sorted(each.name for each in folder.iterdir()) == ["1", "README.md", "config.pbtxt"]
    assert "needs no library" in (folder / "README.md").read_text()


def test_kernels_that_were_not_built(optimized, tmp_path, monkeypatch):
    def missing():
        raise KernelUnavailableError("the kernel library was not built: install a C++ compiler")

    monkeypatch.setattr(triton_server, "kernel_library", missing)
    with pytest.raises(InputError, match=r"was not built.*or optimize the model again with"):
        export_repository(optimized, tmp_path, "demo")


def test_bfloat16_rows_are_not_for_onnxruntime_there(tmp_path):
    path = tmp_path / "narrow.onnx"
    options = {"cache": f"static:{ROWS}", "cache_type": "bfloat16", "verify": False}
    write_model(mla_opt.optimize(demo_model(), **options).model, path)
    with pytest.raises(InputError, match=r"'past\.0\.latent' is bfloat16, which the server's ONNX"):
        export_repository(path, tmp_path, "demo")


@pytest.mark.parametrize("name", ["optimized", "engines"])
def test_what_the_repository_tells(name, request, tmp_path):
    source = request.getfixturevalue(name)
    source = with_engine(source) if name == "engines" else source
    folder = export_repository(source, tmp_path / "models", "demo", Serving("/srv/repository"))
    told = (folder / "README.md").read_text()
    for text in (IMAGE, ":/srv/repository ", "/srv/repository/demo/", "600 seconds", "at most 64"):
        assert text in told
    assert ("TensorRT 11.4" in told) == ("--gpus all" in told) == (name == "engines")
    assert ("ONNX Runtime\n1.28.0" in told) == (name == "optimized")
    assert (folder / "config.pbtxt").read_text().startswith(f"# Written for {IMAGE}")


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
    assert not config.HasField("model_operations")  # for ONNX Runtime alone
    assert [each.kind for each in config.instance_group] == [messages.ModelInstanceGroup.KIND_GPU]
    assert (folder / "1" / "model.plan").read_bytes() == b"plan"
    assert (folder / "plugin.so").read_bytes() == b"code"
    told = (folder / "README.md").read_text()
    assert "--backend-config=tensorrt,plugins=/models/demo/plugin.so" in told
    assert {each.data_type for each in config.sequence_batching.state} == {messages.TYPE_BF16}
    names = {each.name for each in config.input}
    assert names == {each.name for each in read_manifest(engines).phase("decode").inputs} - {
        each.input for each in read_manifest(engines).caches
    }


def test_engines_that_carry_their_plugin(engines, tmp_path):
    folder = export_repository(with_engine(engines, plugin=False), tmp_path / "models", "demo")
    told = (folder / "README.md").read_text()
    assert "plugins=" not in told
    assert "--backend-config=tensorrt,version-compatible=true" in told
    assert sorted(each.name for each in folder.iterdir()) == ["1", "README.md", "config.pbtxt"]


def test_a_folder_without_engines(engines, tmp_path):
    with pytest.raises(InputError, match="holds ONNX files and no engines"):
        export_repository(engines, tmp_path / "models", "demo")


def test_engines_of_rtx(engines, tmp_path):
    with pytest.raises(InputError, match="are of TensorRT-RTX, which the server has no backend"):
        export_repository(with_engine(engines, "rtx"), tmp_path / "models", "demo")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("options", [{"use_plugin": False}, {}], ids=["asked", "no kernel"])
def test_engines_that_write_caches_without_the_plugin(options, wide, tmp_path):
    """TensorRT needs one address for what it reads and writes; the server has two."""
    model = wide if options else demo_model()
    folder = with_engine(onnx_only(model, tmp_path / "engines", **options), plugin=False)
    with pytest.raises(InputError, match="KVCacheUpdate, whose output must lie at the address"):
        export_repository(folder, tmp_path / "models", "demo")
    assert not (tmp_path / "models").exists()


def test_engines_that_take_no_single_sequence(wide, tmp_path):
    folder = with_engine(onnx_only(wide, tmp_path / "engines", batch=(2, 4, 8)))
    with pytest.raises(InputError, match="no fewer than 2 sequences a call"):
        export_repository(folder, tmp_path / "models", "demo")


@pytest.mark.parametrize(
    ("path", "instances", "message"),
    [
        ("models", 1, "must be the full path of the repository on the server"),
        ("/a,b", 1, "without commas"),
        ("/models", 0, "--instances 0: must be 1 or more"),
    ],
)
def test_servers_that_cannot_be(path, instances, message):
    with pytest.raises(InputError, match=message):
        Serving(path, instances)


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
    more = ("--force", "--server-path", "/srv", "--instances", "2")
    assert run(*arguments, *more).exit_code == 0
    config = read(tmp_path / "models" / "demo")
    assert config.model_operations.op_library_filename[0].startswith("/srv/demo/")
    assert config.instance_group[0].count == 2
    assert run("export", tmp_path / "none", *arguments[2:]).exit_code == 2
