"""The loaders that a bundle brings: they need nothing else, and say what the model says."""

from __future__ import annotations

import ast
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)

import mla_opt
from mla_opt.bundles import BundleOptions, export_bundle
from mla_opt.errors import InputError
from mla_opt.files.model_io import write_model
from mla_opt.kernels.building.build import compiler
from mla_opt.models import demo_model
from mla_opt.runtimes import load
from tests.bundles.conftest import NEW, PROMPT, ROWS, loader, said_by
from tests.engines.token_model import token_model
from tests.kernels.test_abi import header_folders
from tests.turned_mask import turned

#: Masks of the ways in which models take them, and one without.
MASKS = {"additive": {}, "boolean": {"bias": "boolean"}, "none": {"bias": None, "causal": True}}
#: For the program in C++: how its mask and its numbers are, and the type of the caches.
IN_CPP = {
    "additive": ({}, "int8"),
    "halves": ({"dtype": "float16"}, "keep"),
    "boolean": (MASKS["boolean"], "bfloat16"),
    "none": (MASKS["none"], "fp8"),
}
LONG = [(7 * at + 3) % 61 for at in range(40)]


def test_python_in_a_process_of_its_own(made, wanted, tmp_path):
    command = [sys.executable, "-I", str(made / "generate.py"), str(NEW), *map(str, PROMPT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert [int(each) for each in done.stdout.split()] == wanted, done.stderr


def test_it_imports_onnxruntime_and_numpy_alone(made):
    tree = ast.parse((made / "generate.py").read_text())
    names = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert names - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


def test_the_kernels_of_the_library_do_the_work(made, tmp_path, monkeypatch):
    """Its body is inlined where ONNX Runtime has no kernel, and no such node is run then."""
    options = ort.SessionOptions
    profile = str(tmp_path / "profile")

    def profiling():
        made_options = options()
        made_options.enable_profiling = True
        made_options.profile_file_prefix = profile
        return made_options

    monkeypatch.setattr(ort, "SessionOptions", profiling)
    loader(made)(PROMPT, 2)
    (path,) = tmp_path.glob("profile*")
    events = json.loads(path.read_text())
    ran = [each["args"].get("op_name") for each in events if each.get("cat") == "Node"]
    assert "MultiHeadLatentAttention" in ran


@pytest.mark.parametrize("cache_type", ["float16", "bfloat16", "int8", "fp8"])
def test_caches_of_fewer_bits(cache_type, tmp_path):
    folder = tmp_path / "bundle"
    options = BundleOptions(ROWS, cache_type, verify=False)
    manifest = export_bundle(demo_model(), folder, options)
    named = {"int8": "int8", "fp8": "float8_e4m3fn"}.get(cache_type, cache_type)
    assert named in {each.dtype for each in manifest.caches}
    inputs = {
        each.name: each.type.tensor_type for each in onnx.load(folder / "model.onnx").graph.input
    }
    for cache in manifest.caches:
        assert cache.onnx_type == inputs[cache.input].elem_type
    optimized = said_by(folder / "model.onnx", PROMPT, NEW)
    assert loader(folder)(PROMPT, NEW) == optimized


def test_quantized_layers_are_run_by_the_library(tmp_path):
    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer = MatMulNBitsQuantizer(onnx.load(demo_model()), algo_config=config)
    quantizer.process()
    source, folder = tmp_path / "4bit.onnx", tmp_path / "bundle"
    onnx.save(quantizer.model.model, source)
    export_bundle(source, folder, BundleOptions(ROWS))
    written = onnx.load(folder / "model.onnx").graph.node
    domains = {node.domain for node in written if node.op_type == "MatMulNBits"}
    assert domains == {"mla_opt"}
    assert loader(folder)(PROMPT, NEW) == said_by(folder / "model.onnx", PROMPT, NEW)


@pytest.mark.parametrize("mask", MASKS)
def test_released_widths_and_every_kind_of_mask(mask, tmp_path):
    """N 128, R 64, V 128, C 512; and a prompt in several calls, whose masks are of parts."""
    source, folder = token_model(tmp_path / "wide.onnx", **MASKS[mask]), tmp_path / "bundle"
    manifest = export_bundle(source, folder, BundleOptions(rows=64, verify=False))
    (layer,) = manifest.layers
    assert (layer.kv_lora_rank, layer.qk_rope_head_dim) == (512, 64)
    wanted = said_by(source, LONG, 9)
    assert loader(folder)(LONG, 9) == wanted
    in_pieces(folder)
    assert loader(folder)(LONG, 9) == wanted


def in_pieces(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    content["most_new"] = 16
    (folder / "manifest.json").write_text(json.dumps(content))


def test_standard_operators_need_no_library(tmp_path):
    source, folder = tmp_path / "portable.onnx", tmp_path / "bundle"
    portable = mla_opt.optimize(
        demo_model(), target="portable", cache=f"static:{ROWS}", verify=False
    )
    write_model(portable.model, source)
    assert export_bundle(source, folder).library is None
    assert "needs no library" in (folder / "README.md").read_text()
    assert loader(folder)(PROMPT, NEW) == said_by(demo_model(), PROMPT, NEW)


def test_weights_in_a_file_of_their_own(tmp_path):
    model, source, folder = onnx.load(demo_model()), tmp_path / "m.onnx", tmp_path / "bundle"
    onnx.save(model, source, save_as_external_data=True, location="m.bin", size_threshold=0)
    manifest = export_bundle(source, folder, BundleOptions(ROWS, verify=False))
    assert [each.name for each in manifest.model] == ["model.onnx", "model.onnx.data"]
    assert loader(folder)(PROMPT, NEW) == said_by(demo_model(), PROMPT, NEW)
    with (folder / "model.onnx.data").open("r+b") as data:
        data.write(b"other")
    with pytest.raises(SystemExit, match=r"model\.onnx\.data is not the file that the manifest"):
        loader(folder)(PROMPT, 1)
    with pytest.raises(InputError, match=r"model\.onnx\.data: is not the file that the manifest"):
        load(folder)


@pytest.fixture
def bundle(made, tmp_path):
    return shutil.copytree(made, tmp_path / "bundle")


@pytest.mark.parametrize("name", ["model.onnx", "libmla_opt_kernels.so"])
def test_what_was_changed_is_not_loaded(bundle, name):
    with (bundle / name).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(SystemExit, match=f"{name} is not the file that the manifest tells of"):
        loader(bundle)(PROMPT, 1)


def test_a_library_for_another_machine(bundle, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "sparc")
    with pytest.raises(SystemExit, match=r"the library is for Linux .*, not for"):
        loader(bundle)(PROMPT, 1)


def test_what_does_not_fit(made):
    assert len(loader(made)(PROMPT, ROWS - len(PROMPT) + 1)) == ROWS - len(PROMPT) + 1
    with pytest.raises(SystemExit, match=f"the caches have room for {ROWS} tokens"):
        loader(made)(PROMPT, ROWS - len(PROMPT) + 2)
    for wrong in (-1, 112):
        with pytest.raises(SystemExit, match="the ids that the model knows are 0 to 111"):
            loader(made)([3, wrong], 1)


# C++


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """What compiles the C++ loader of a bundle, against the library of the Python package."""
    folders = header_folders("onnxruntime_cxx_api.h")
    if not folders:
        pytest.skip("no headers of ONNX Runtime's C++ API are here (see tests/kernels/test_abi.py)")
    home = tmp_path_factory.mktemp("library")
    (library,) = Path(ort.__file__).parent.glob("capi/libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (home / name).symlink_to(library)

    def compile_in(folder: Path) -> Path:
        options = ["-std=c++17", "-O1", "-Wall", "-Werror", f"-isystem{folders[-1]}"]
        linked = [f"-L{home}", "-lonnxruntime", f"-Wl,-rpath,{home}"]
        command = [*compiler(), *options, str(folder / "generate.cpp"), *linked]
        done = subprocess.run(
            [*command, "-o", str(folder / "generate")], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return folder / "generate"

    return compile_in


def test_cpp(compiled, bundle, wanted, tmp_path):
    program = compiled(bundle)
    told = call(program, NEW, *PROMPT, cwd=tmp_path)
    assert [int(each) for each in told.stdout.split()] == wanted, told.stderr
    full = call(program, ROWS - len(PROMPT) + 2, *PROMPT)
    assert (full.returncode, full.stdout) == (2, "")
    assert f"the caches have room for {ROWS} tokens" in full.stderr
    assert "knows are 0 to 111" in call(program, 1, 3, -1).stderr
    (bundle / "model.onnx").unlink()
    gone = call(program, 1, *PROMPT)
    assert gone.returncode == 1
    assert "model.onnx" in gone.stderr


@pytest.mark.parametrize("case", IN_CPP)
def test_cpp_at_released_widths(compiled, case, tmp_path):
    options, cache_type = IN_CPP[case]
    source, folder = token_model(tmp_path / "wide.onnx", **options), tmp_path / "bundle"
    export_bundle(source, folder, BundleOptions(64, cache_type, verify=False))
    header = (folder / "model.h").read_text()
    (folder / "model.h").write_text(header.replace("MOST_NEW = 512", "MOST_NEW = 16"))
    told = call(compiled(folder), 9, *LONG)
    in_pieces(folder)
    assert [int(each) for each in told.stdout.split()] == loader(folder)(LONG, 9), told.stderr


def call(program: Path, *arguments: int, cwd: Path | None = None):
    command = [str(program), *map(str, arguments)]
    clean = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=clean)


def test_a_mask_that_is_true_where_there_is_padding(wanted, tmp_path):
    folder = tmp_path / "bundle"
    manifest = export_bundle(turned(tmp_path / "model.onnx"), folder, BundleOptions(rows=ROWS))
    (mask,) = (each for each in manifest.inputs if each.role == "mask")
    assert (mask.name, mask.visible, mask.hidden) == ("key_padding_mask", 0.0, 1.0)
    assert loader(folder)(PROMPT, NEW) == wanted
