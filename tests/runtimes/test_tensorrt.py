"""The TensorRT runtime on a stand-in that computes with ONNX Runtime (tensorrt_stand_in)."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import mla_opt
from mla_opt import runtimes
from mla_opt.engines import rtx_library, tensorrt_library
from mla_opt.engines.cuda_driver import Device
from mla_opt.engines.export import ExportOptions, export
from mla_opt.engines.manifest import MANIFEST, Builder, File, read_manifest
from mla_opt.engines.profiles import Range, Ranges
from mla_opt.engines.tensorrt_library import TensorRT
from mla_opt.errors import InputError
from mla_opt.models import demo_model
from mla_opt.report.plain import to_plain
from mla_opt.runtimes.onnxruntime import generate as generate_by_onnxruntime
from mla_opt.runtimes.onnxruntime import session
from mla_opt.runtimes.tensorrt import EngineCache, generate, load, loading
from mla_opt.runtimes.tensorrt.cuda import Cuda, open_cuda
from mla_opt.verification.onnx.sessions import RunError
from tests.runtimes.tensorrt_stand_in import Cudart, TensorRTModule
from tests.turned_mask import turned

ROWS = 48
PROMPTS = ([5, 3, 8, 1, 2], [7, 7], [4, 9, 9, 1, 0, 3, 2, 6])


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """An export with the names of its phases for engines."""
    return exported_from(demo_model(), tmp_path_factory.mktemp("export") / "engines")


def exported_from(model: Path, folder: Path) -> Path:
    ranges = Ranges(ROWS, Range(1, 2, 4), Range(1, 4, 8), Range(1, 1, 3), Range(1, 8, ROWS))
    options = ExportOptions(ranges, "float16", use_plugin=False, onnx_only=True, verify=False)
    export(model, folder, options)
    content = json.loads((folder / MANIFEST).read_text())
    content["builder"] = to_plain(Builder("tensorrt", "99.1", (90,), "NVIDIA Something"))
    for phase in content["phases"]:
        name = phase["phase"].encode()
        (folder / f"{phase['phase']}.engine").write_bytes(name)
        file = File(f"{phase['phase']}.engine", hashlib.sha256(name).hexdigest(), len(name))
        phase["engine"] = to_plain(file)
    (folder / MANIFEST).write_text(json.dumps(content))
    return folder


@pytest.fixture
def machine(exported, monkeypatch):
    """TensorRT, a GPU and CUDA's runtime; what a test changes of them is seen by `load`."""
    return machine_of(exported, monkeypatch)


def machine_of(exported, monkeypatch):
    module = TensorRTModule(exported, read_manifest(exported))
    made = SimpleNamespace(module=module, cudart=Cudart(), device=Device("NVIDIA Something", 90))
    trt = TensorRT(module, "tensorrt", SimpleNamespace(sink=None))
    monkeypatch.setattr(loading, "load_tensorrt", lambda _: trt)
    monkeypatch.setattr(loading, "current_device", lambda: made.device)
    monkeypatch.setattr(loading, "open_cuda", lambda: Cuda(made.cudart))
    return made


@pytest.fixture
def engines(exported, machine):
    return load(exported)


@pytest.fixture(scope="module")
def by_onnxruntime():
    opened = session(mla_opt.optimize(demo_model(), cache=f"static:{ROWS}", verify=False).model)
    return lambda *given, **options: generate_by_onnxruntime(opened, *given, **options)


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS[1:2], PROMPTS], ids=len)
def test_it_says_what_onnxruntime_says(engines, by_onnxruntime, prompts):
    wanted = by_onnxruntime(list(prompts), max_new_tokens=12)
    seen = generate(engines, list(prompts), max_new_tokens=12)
    assert [row.tolist() for row in seen.tokens] == [row.tolist() for row in wanted.tokens]
    assert seen.cache.lengths.tolist() == wanted.cache.lengths.tolist()


def test_by_the_load_of_all_runtimes(exported, machine, engines):
    model = runtimes.load(exported)
    assert (model.runtime, model.manifest) == ("tensorrt", engines.manifest)
    prompts = list(PROMPTS[:2])
    wanted = generate(engines, prompts, max_new_tokens=5)
    seen = runtimes.generate(model, prompts, max_new_tokens=5)
    assert [row.tolist() for row in seen.tokens] == [row.tolist() for row in wanted.tokens]
    with pytest.raises(InputError, match="the cache is of another model"):
        runtimes.generate(model, [[1], [2]], max_new_tokens=2, cache=wanted.cache)


def test_turns_of_a_conversation(engines, by_onnxruntime):
    first, second = [list(PROMPTS[0]), list(PROMPTS[1])], [[3], [6, 1, 4, 4, 8]]
    wanted = by_onnxruntime(first, max_new_tokens=4)
    wanted = by_onnxruntime(second, max_new_tokens=5, cache=wanted.cache)
    seen = generate(engines, first, max_new_tokens=4)
    seen = generate(engines, second, max_new_tokens=5, cache=seen.cache)
    assert [row.tolist() for row in seen.tokens] == [row.tolist() for row in wanted.tokens]


def test_a_prompt_longer_than_one_call(engines, by_onnxruntime):
    """Eight tokens go through the prefill engine, the rest in threes through the other."""
    prompt = [list(np.random.default_rng(1).integers(0, 112, 21))]
    wanted = by_onnxruntime(prompt, max_new_tokens=6)
    seen = generate(engines, prompt, max_new_tokens=6)
    assert seen.tokens[0].tolist() == wanted.tokens[0].tolist()


def test_draws_and_stops(engines, by_onnxruntime):
    options = {"max_new_tokens": 20, "temperature": 0.9, "top_k": 9, "seed": 4, "stop_tokens": 3}
    wanted = by_onnxruntime(list(PROMPTS), **options)
    streamed: list[np.ndarray] = []
    seen = generate(engines, list(PROMPTS), stream=streamed.append, **options)
    assert seen.finish_reasons == wanted.finish_reasons
    assert len(streamed) == seen.steps + 1


def test_steps_are_recorded_once_and_replayed(engines, machine):
    result = generate(engines, list(PROMPTS), max_new_tokens=12)
    assert result.steps == 11
    assert machine.cudart.replays == 10, "all but the first, which loads kernels"
    generate(engines, [[1]] * 3, max_new_tokens=3, cache=result.cache)
    assert machine.cudart.replays == 12, "the pending token and the new one go in together"


def test_logits_of_padded_masks_are_those_of_short_ones(engines):
    """A step with a mask over the whole buffer, against one that is as long as the text."""
    short, wide = EngineCache(engines), EngineCache(engines)
    short._fix_shapes = lambda feeds: False  # type: ignore[method-assign]
    for cache in (short, wide):
        cache.append(PROMPTS[2])
    for token in (3, 1, 4):
        np.testing.assert_allclose(
            short.append([token]).astype(np.float32),
            wide.append([token]).astype(np.float32),
            atol=2e-3,
        )


def test_memory_is_given_back(engines, machine):
    before = len(machine.cudart.memory)
    cache = EngineCache(engines, 2)
    cache.append([[1, 2], [3]])
    cache.close()
    assert len(machine.cudart.memory) == before
    with pytest.raises(InputError, match="its memory was given back"):
        cache.append([[1], [2]])


@pytest.mark.parametrize("batch", [0, 5])
def test_a_batch_that_the_engines_do_not_take(engines, batch):
    with pytest.raises(InputError, match="takes 1 to 4 sequences, not"):
        EngineCache(engines, batch)


def test_more_tokens_than_there_are_rows(engines):
    with pytest.raises(InputError, match="49 rows do not fit in caches of 48, of which 0 are used"):
        generate(engines, [1, 2], max_new_tokens=48)


def test_a_cache_of_other_engines(engines, exported):
    with pytest.raises(InputError, match="the cache is of other engines"):
        generate(engines, [1], max_new_tokens=1, cache=EngineCache(load(exported)))


def test_no_room_on_the_device(engines, machine):
    machine.cudart.room = 1 << 10
    with pytest.raises(RunError, match="cudaMalloc failed: 2"):
        EngineCache(engines)


# What `load` refuses


def test_an_engine_of_another_gpu(exported, machine):
    machine.device = Device("NVIDIA Other", 89)
    with pytest.raises(
        InputError, match=r"built for NVIDIA Something, and the GPU is NVIDIA Other \(SM 89\)"
    ):
        load(exported)


def test_an_engine_of_another_version(exported, machine):
    machine.module.__version__ = "98.7"
    with pytest.raises(InputError, match=r"built by version 99\.1, and TensorRT 98\.7 is inst"):
        load(exported)


def test_an_engine_that_tensorrt_refuses(exported, machine):
    machine.module.refused = True
    with pytest.raises(InputError, match="does not open an engine of it: the engine plan file"):
        load(exported)


@pytest.fixture
def copy(exported, tmp_path):
    """A copy to spoil; `change` rewrites its manifest."""
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)

    def change(edit) -> Path:
        content = json.loads((folder / MANIFEST).read_text())
        edit(content)
        (folder / MANIFEST).write_text(json.dumps(content))
        return folder

    return change


def test_a_damaged_engine(copy, machine):
    folder = copy(lambda content: None)
    (folder / "decode.engine").write_bytes(b"decodf")
    with pytest.raises(InputError, match=r"decode.engine: is not the file that the manifest"):
        load(folder)
    (folder / "decode.engine").unlink()
    with pytest.raises(InputError, match=r"decode.engine: cannot be read"):
        load(folder)


def test_a_folder_of_onnx_files(copy, machine):
    with pytest.raises(InputError, match="holds no engines, only ONNX files"):
        load(copy(lambda content: content.update(builder=None)))


def plugin(library: File | None, version: str = "1") -> dict:
    return {
        "plugin": {
            "namespace": "mla_opt",
            "name": "LatentAttention",
            "version": version,
            "library": to_plain(library),
        }
    }


def test_an_engine_that_carries_code(copy, machine):
    folder = copy(lambda content: content.update(plugin(None)))
    with pytest.raises(InputError, match="carries its plugin, which is code; allow_host_code"):
        load(folder)
    load(folder, allow_host_code=True)
    assert machine.module.host_code


@pytest.fixture
def unread(monkeypatch):
    """Engines may be many gigabytes: what can be told without them is told before."""
    monkeypatch.setattr(loading, "_content", lambda *_: pytest.fail("an engine was read"))


@pytest.mark.parametrize("library", [None, File("plugin.so", "0", 4)], ids=["carried", "beside"])
def test_a_plugin_of_another_version(copy, machine, unread, library):
    folder = copy(lambda content: content.update(plugin(library, "2")))
    with pytest.raises(InputError, match="calls version 2 of the plugin, this release has 1"):
        load(folder, allow_host_code=True)


def test_no_gpu(exported, machine, unread, monkeypatch):
    def none():
        raise InputError("the CUDA driver finds no GPU (error 100)")

    monkeypatch.setattr(loading, "current_device", none)
    with pytest.raises(InputError, match="the CUDA driver finds no GPU"):
        load(exported)


def test_no_binding_of_cuda(exported, machine, unread, monkeypatch):
    monkeypatch.setattr(loading, "open_cuda", open_cuda)
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"runtime cannot be imported .*pip install cuda-bindings"):
        load(exported)


def test_no_tensorrt(exported, machine, unread, monkeypatch):
    monkeypatch.setattr(loading, "load_tensorrt", tensorrt_library.load.__wrapped__)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(InputError, match="tensorrt cannot be imported"):
        load(exported)


def test_a_plugin_that_was_changed(copy, machine, unread):
    folder = copy(lambda content: content.update(plugin(File("plugin.so", "0", 4))))
    (folder / "plugin.so").write_bytes(b"evil")
    with pytest.raises(InputError, match=r"plugin.so: is not the file that the manifest tells"):
        load(folder)


def test_a_plugin_that_was_not_built_here(copy, machine, monkeypatch):
    """The manifest vouches for nothing: who can change the plugin can change it, too."""
    content, loaded = b"code", []
    digest = hashlib.sha256(content).hexdigest()
    folder = copy(lambda manifest: manifest.update(plugin(File("plugin.so", digest, 4))))
    (folder / "plugin.so").write_bytes(content)
    monkeypatch.setattr(loading, "check_plugins", lambda _: None)
    monkeypatch.setattr(loading, "load_plugin", lambda _, path: loaded.append(path))
    with pytest.raises(InputError, match=r"plugin\.so: is code that was not built here"):
        load(folder)
    assert not loaded
    monkeypatch.setenv("MLA_OPT_LIBRARY_HASHES", digest)
    load(folder)
    (folder / "plugin.so").chmod(0o666)
    with pytest.raises(InputError, match="others can write"):
        load(folder)
    load(folder, allow_host_code=True)
    assert len(loaded) == 2


def test_a_plugin_that_would_end_the_process(copy, machine, unread, monkeypatch):
    trt = TensorRT(machine.module, "rtx", SimpleNamespace(sink=None))
    monkeypatch.setattr(loading, "load_tensorrt", lambda _: trt)
    monkeypatch.setattr(rtx_library, "finds_itself", lambda: False)
    with pytest.raises(InputError, match=r"cannot open itself as libtensorrt_rtx\.so"):
        load(copy(lambda content: content.update(plugin(File("plugin.so", "0", 4)))))


def test_a_mask_that_is_true_where_there_is_padding(by_onnxruntime, tmp_path, monkeypatch):
    """Of several prompts, in steps whose masks are over the whole buffer."""
    folder = exported_from(turned(tmp_path / "model.onnx"), tmp_path / "engines")
    machine_of(folder, monkeypatch)
    wanted = by_onnxruntime(list(PROMPTS), max_new_tokens=8)
    result = generate(load(folder), list(PROMPTS), max_new_tokens=8)
    assert [each.tolist() for each in result.tokens] == [each.tolist() for each in wanted.tokens]
