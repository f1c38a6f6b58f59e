"""The plugin library as nvcc makes it, asked what TensorRT asks it (native/drive_plugin.cpp).

No TensorRT is needed: what the plugin calls of it, it is given.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

from mla_opt.kernels.building.elf import needed_libraries
from mla_opt.kernels.building.nvcc import find_nvcc
from mla_opt.kernels.cuda_library import CUDA_ABI_VERSION, CudaLibrary
from mla_opt.operator.contract import OP_TYPES
from tests.engines.rtx import SM, headers, needs_headers

DRIVER = Path(__file__).parent / "native" / "drive_plugin.cpp"
EXAMPLE = Path(__file__).parents[2] / "examples" / "run_engine.cpp"
HAS_GPU = Path("/dev/nvidia0").exists()

pytestmark = needs_headers


@pytest.fixture(scope="module")
def said(plugin, tmp_path_factory) -> list[str]:
    """What the driver prints."""
    program = tmp_path_factory.mktemp("driver") / "drive_plugin"
    options = ["-std=c++17", "-cudart=none", f"-I{headers()}", "-o", str(program), "-ldl"]
    compiler = str(find_nvcc().path)
    made = subprocess.run([compiler, str(DRIVER), *options], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
    done = subprocess.run([str(program), str(plugin)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_the_library_links_nothing_of_tensorrt_and_cuda(built_plugin):
    for name in needed_libraries(built_plugin.library):
        assert name.split(".so")[0] in ("libc", "libm", "libstdc++", "libgcc_s", "ld-linux-x86-64")
    library = ctypes.CDLL(os.fspath(built_plugin.library))
    for name in ("getCreators", "setLoggerFinder", "mla_opt_cuda_abi_version"):
        assert hasattr(library, name)
    assert not hasattr(library, "cudaMalloc")
    assert CudaLibrary(built_plugin.library).architectures == (SM,)


def test_no_kernel_of_the_plugin_spills(built_plugin):
    assert built_plugin.resources
    assert {(one.spilled, one.stack) for one in built_plugin.resources} == {(0, 0)}


def test_a_creator_for_each_of_the_names_that_nodes_have(said):
    assert said[:9] == ["creators: 8", *(f"for: {name}" for name in OP_TYPES)]
    assert said[9] == "creator: mla_opt LatentAttention 1"


def test_a_plugin_of_a_node_and_the_one_that_its_engine_keeps_say_the_same(said):
    starts = [at for at, line in enumerate(said) if line.startswith("outputs:")]
    built, opened = (said[at : at + 13] for at in starts)
    assert built == opened
    assert built[:10] == [
        "outputs: 2",
        "alias: -1 2",
        f"timing: mla_opt::LatentAttention 1 abi {CUDA_ABI_VERSION} C 512 causal",
        "shapes: 0 4 16 1 512 4 1 1024 576",
        "takes 7: 1",
        "takes 1: 1",
        "takes 0: 0",
        "takes mixed: 0",
        "configured: 0",
        "log: LatentAttention: there is no kernel for kv_lora_rank 512 and a rotary width of 128;"
        " lower the model to standard operators",
    ]
    assert built[10] == "wide: 1"
    assert built[11] == "log: LatentAttention: axis 3 of latent is 512, expected 576"
    assert built[12] == "apart: 1"
    sizes = {line for line in said if line.startswith("workspace:")}
    assert len(sizes) == 1
    assert sizes != {"workspace: 0"}


def test_an_engine_of_another_version_of_the_plugin(said):
    at = said.index("another version: 0")
    assert said[at - 1] == (
        f"log: site: the engine was built with version {CUDA_ABI_VERSION + 1} of the kernels, this"
        f" library has {CUDA_ABI_VERSION}; build the engine again"
    )
    assert "no version: 0" in said


def test_attributes_that_are_missing_or_have_no_meaning(said):
    for answer, reason in (
        ("no rank: 0", "kv_lora_rank is 0, expected a whole number from 1 to 1048576"),
        ("no causal: 0", "attribute causal is missing"),
    ):
        assert said[said.index(answer) - 1] == f"log: LatentAttention: {reason}"


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU: tests/gpu runs it")
def test_a_launch_without_a_gpu_says_so(said):
    assert said[-1] == "enqueue: 1"
    assert "LatentAttention: no CUDA device can be used: " in said[-2]


def test_the_example_in_cpp_compiles(tmp_path):
    options = ["-std=c++17", f"-I{headers()}", "-c", "-o", str(tmp_path / "example.o")]
    warnings = "-Xcompiler=-Wall,-Wno-deprecated-declarations"
    command = [str(find_nvcc().path), str(EXAMPLE), *options, warnings]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "run_engine.cpp" not in done.stderr
