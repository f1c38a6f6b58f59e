"""The CUDA library as nvcc makes it: for all architectures, without spills, and without a GPU."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from mla_opt.errors import InputError, KernelUnavailableError
from mla_opt.kernels.building import cuda_build
from mla_opt.kernels.building.elf import needed_libraries
from mla_opt.kernels.building.nvcc import (
    find_nvcc,
    parse_architectures,
    read_resources,
    read_warnings,
)
from mla_opt.kernels.cuda_library import (
    CUDA_ABI_VERSION,
    FOLDER_VARIABLE,
    CudaLibrary,
    cuda_kernel_available,
    cuda_kernel_library,
)
from mla_opt.kernels.trust import HASHES_VARIABLE
from mla_opt.operator import Signature, latent_attention
from tests.kernels.cuda.problems import Case, expected, operands, problem_of, results
from tests.operator import cases

EXPORTED = {
    "RegisterCustomOps",
    "mla_opt_cuda_abi_version",
    "mla_opt_cuda_architectures",
    "mla_opt_cuda_latent_attention_launch",
    "mla_opt_cuda_latent_attention_loads_in_bulk",
    "mla_opt_cuda_latent_attention_workspace",
    "mla_opt_cuda_multiprocessors",
}


def has_nvcc() -> bool:
    try:
        find_nvcc()
    except InputError:
        return False
    return True


needs_nvcc = pytest.mark.skipif(not has_nvcc(), reason="no nvcc here: the kernels are not compiled")


@needs_nvcc
def test_no_kernel_spills(built, architectures):
    assert {one.architecture for one in built.resources} == set(architectures)
    for one in built.resources:
        assert (one.spilled, one.stack) == (0, 0), one
    # Such as that products of warpgroups wait for each other.
    assert built.warnings == ()


@needs_nvcc
def test_registers_leave_room_for_the_blocks_that_are_planned(built, architectures):
    """Two narrow blocks side by side, one of another width: 65536 registers, by eights."""
    attention = [one for one in built.resources if "attend_kernel" in one.kernel]
    for architecture in architectures:
        assert sum(one.architecture == architecture for one in attention) == 18
    for one in attention:
        threads = 2 * 128 if "WidthE0" in one.kernel else 256
        assert -(-one.registers // 8) * 8 * threads <= 65536, one


@needs_nvcc
def test_warpgroups_are_used_on_90a_alone(built):
    """Elsewhere, and for other dims, that kernel is empty: it is never planned."""
    for one in built.resources:
        if "of_warpgroups" in one.kernel:
            is_used = one.architecture == "90a" and "256_32" not in one.kernel
            assert (one.registers > 200) == is_used, one


def find_cuobjdump() -> str | None:
    """CUDA's disassembler: of the toolkit, else the one that Triton brings."""
    folders = [str(find_nvcc().path.parent)] if has_nvcc() else []
    triton = importlib.util.find_spec("triton")
    for place in (triton.submodule_search_locations or ()) if triton else ():
        folders.append(str(Path(place) / "backends" / "nvidia" / "bin"))
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=os.pathsep.join(folders))


def kernels_with(instruction: str, library: Path) -> Counter[tuple[str, str]]:
    """How often kernels have it, by architecture and name."""
    command = [find_cuobjdump() or "", "-sass", str(library)]
    found: Counter[tuple[str, str]] = Counter()
    architecture = kernel = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if match := re.match(r"arch = sm_(\w+)|\s+Function : (\S+)", line):
                architecture, kernel = match[1] or architecture, match[2] or kernel
            elif instruction in line:
                found[architecture, kernel] += 1
    assert process.returncode == 0
    assert kernel
    return found


@needs_nvcc
@pytest.mark.skipif(find_cuobjdump() is None, reason="no cuobjdump here to disassemble with")
def test_tensor_memory_accelerator_is_used_on_90a_alone(built):
    """Where tiles are loaded, the first and the next ones, one instruction for each box."""
    found = kernels_with("UTMALDG.2D", built.library)
    assert sorted(found.values()) == [16, 16, 18, 18]
    for (architecture, kernel), count in found.items():
        assert architecture == "90a"
        assert "attend_kernel_of_warpgroups" in kernel
        assert ("512_64" in kernel) == (count == 18)


@needs_nvcc
def test_library_needs_nothing_of_cuda(built, architectures):
    """Loading it asks for no driver, no CUDA runtime and no TensorRT."""
    for name in needed_libraries(built.library):
        assert name.split(".so")[0] in ("libc", "libm", "libstdc++", "libgcc_s", "ld-linux-x86-64")
    library = CudaLibrary(built.library)
    assert library.architectures == architectures


@needs_nvcc
def test_exports_what_hosts_call_and_nothing_of_cuda(built):
    library = ctypes.CDLL(os.fspath(built.library))
    for name in EXPORTED:
        assert hasattr(library, name)
    for name in ("cudaMalloc", "cudaLaunchKernel", "cudaGetDevice"):
        assert not hasattr(library, name)


@needs_nvcc
@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU: tests/gpu runs it")
def test_without_a_gpu_the_launch_says_so(built):
    library = CudaLibrary(built.library)
    case = Case()
    arrays = operands(case)
    made = results(case, arrays, expected(case, arrays))
    problem = problem_of(case, arrays, made, lambda array: array.ctypes.data)
    assert library.multiprocessors() == 0
    assert library.workspace_bytes(problem, 132) > 0
    with pytest.raises(InputError, match=r"LatentAttention: no CUDA device can be used: .*cuda"):
        library.launch(problem, 132, 0, 0, 0)


@needs_nvcc
def test_serves_onnxruntime_on_the_cpu_too(built):
    """One library for a session with the CUDA provider: what stays on the CPU has its kernel."""
    signature = Signature(has_cache=True, causal=True, sink=True)
    feeds = cases.operands(signature)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(built.library))
    session = ort.InferenceSession(
        cases.model(signature, feeds).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    wanted = latent_attention(
        **feeds, scale=cases.SCALE, kv_lora_rank=cases.RANK, causal=signature.causal
    )
    assert cases.difference(session.run(None, feeds)[0], wanted.output) < 3e-6


@needs_nvcc
def test_found_where_it_was_built(built, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, os.fspath(built.library.parent))
    assert cuda_kernel_available()
    assert cuda_kernel_library() == built.library


def test_not_built(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, os.fspath(tmp_path))
    assert not cuda_kernel_available()
    with pytest.raises(KernelUnavailableError, match="are not there: run `mla-opt build-kernels"):
        cuda_kernel_library()
    (tmp_path / "libmla_opt_cuda.so").write_bytes(b"no library")
    with pytest.raises(KernelUnavailableError, match="was not built here"):
        cuda_kernel_library()
    monkeypatch.setenv(HASHES_VARIABLE, hashlib.sha256(b"no library").hexdigest())
    with pytest.raises(KernelUnavailableError, match="cannot be loaded"):
        cuda_kernel_library()


@needs_nvcc
def test_kernels_of_another_release(tmp_path):
    """Refused before anything of it is used."""
    source, library = tmp_path / "other.cpp", tmp_path / "libother.so"
    source.write_text('extern "C" int mla_opt_cuda_abi_version() { return 7; }\n')
    options = ["-shared", "-cudart=none", "-Xcompiler=-fPIC", "-o", str(library)]
    subprocess.run([str(find_nvcc().path), str(source), *options], check=True)
    told = f"have ABI version 7, this release needs {CUDA_ABI_VERSION}"
    with pytest.raises(KernelUnavailableError, match=told):
        CudaLibrary(library)


def test_architectures():
    assert parse_architectures("120, sm_90a,80,compute_80") == ("80", "90a", "120")
    with pytest.raises(InputError, match="90 is given in more than one form"):
        parse_architectures("90,90a")
    with pytest.raises(InputError, match="'hopper' is no architecture"):
        parse_architectures("80,hopper")
    with pytest.raises(InputError, match="need architecture 80 or newer, not 75"):
        parse_architectures("75")


def fake_nvcc(folder, version="release 13.0, V13.0.88", architectures="compute_80", compiles=0):
    path = folder / "nvcc"
    path.write_text(
        "#!/bin/sh\n"
        f'case "$1" in --version) echo "{version}";; --list-gpu-arch) echo "{architectures}";;\n'
        f" *) echo 'what nvcc says' >&2; exit {compiles};; esac\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


REFUSED = {
    "old": ({"version": "release 11.8, V11.8.89"}, "is of CUDA 11.8; the kernels need 12.0"),
    "another": ({"version": "gcc 14"}, "does not say the version of CUDA"),
    "unknown": ({"architectures": "compute_75"}, r"cannot compile for 80: it has 75"),
    "fails": ({"compiles": 3}, "failed with 3: what nvcc says"),
}


@pytest.mark.parametrize(("fake", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_compiler_that_cannot(tmp_path, fake, message):
    nvcc = fake_nvcc(tmp_path, **fake)
    with pytest.raises(InputError, match=message):
        cuda_build.build_cuda(("80",), tmp_path / "out", nvcc=nvcc)
    assert not list((tmp_path / "out").glob("*"))


def test_no_compiler(tmp_path, monkeypatch):
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(InputError, match="no CUDA compiler: nvcc is not on PATH"):
        cuda_build.build_cuda(("80",), tmp_path)
    monkeypatch.setenv("CUDACXX", os.fspath(tmp_path / "none"))
    with pytest.raises(InputError, match="cannot be run: No such file"):
        cuda_build.build_cuda(("80",), tmp_path)


def tensorrt_headers(folder, major=10, minor=14):
    folder.mkdir()
    (folder / "NvInferRuntime.h").write_text("#define FROM_TENSORRT 1\n")
    (folder / "NvInferVersion.h").write_text(
        f"#define TRT_MAJOR_ENTERPRISE {major}\n#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE\n"
        f"#define TRT_MINOR_ENTERPRISE {minor}\n"
    )
    return folder


def test_tensorrt_headers(tmp_path):
    assert cuda_build.check_headers(tensorrt_headers(tmp_path / "good")) == (10, 14)
    with pytest.raises(InputError, match=r"is of TensorRT 8\.6; the plugin needs 10\.3"):
        cuda_build.check_headers(tensorrt_headers(tmp_path / "old", 8, 6))
    with pytest.raises(InputError, match=r"has no NvInferRuntime\.h"):
        cuda_build.check_headers(tmp_path)
    headers = tensorrt_headers(tmp_path / "odd")
    (headers / "NvInferVersion.h").write_text("")
    with pytest.raises(InputError, match="says no version"):
        cuda_build.check_headers(headers)


@needs_nvcc
def test_plugin_sources_are_compiled_against_the_headers(tmp_path, monkeypatch):
    """A plugin of one function, beside a kernel of one line."""
    for folder in ("cuda", "tensorrt"):
        (tmp_path / "home" / folder).mkdir(parents=True)
    (tmp_path / "home" / "cuda" / "kernel.cu").write_text("__global__ void kernel() {}\n")
    (tmp_path / "home" / "tensorrt" / "plugin.cpp").write_text(
        "#include <NvInferRuntime.h>\n"
        'extern "C" __attribute__((visibility("default"))) int plugin() { return FROM_TENSORRT; }\n'
    )
    monkeypatch.setattr(cuda_build, "HOME", tmp_path / "home")
    headers = tensorrt_headers(tmp_path / "headers")
    built = cuda_build.build_tensorrt(("80",), tmp_path / "out", headers)
    assert ctypes.CDLL(os.fspath(built.library)).plugin() == 1
    assert len(built.resources) == 1
    (tmp_path / "home" / "tensorrt" / "plugin.cpp").unlink()
    with pytest.raises(InputError, match="has no TensorRT plugin to compile"):
        cuda_build.build_tensorrt(("80",), tmp_path / "out", headers)


def test_resources_are_read():
    """And a spill is seen."""
    (one,) = read_resources(
        "ptxas info    : Compiling entry function 'name' for 'sm_90a'\n"
        "ptxas info    : Function properties for name\n"
        "    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n"
        "ptxas info    : Used 168 registers, used 1 barriers\n"
    )
    assert (one.kernel, one.architecture, one.registers) == ("name", "90a", 168)
    assert (one.stack, one.spilled) == (16, 12)


def test_warnings_are_read():
    said = (
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are"
        " serialized\nptxas info    : Used 4 registers\nx.cu(1): warning #177-D: unused\n"
    )
    assert len(read_warnings(said)) == 2


def test_needed_libraries_of_a_library_that_is_known():
    numpy = np._core._multiarray_umath.__file__
    assert "libc.so.6" in needed_libraries(Path(numpy))
    with pytest.raises(ValueError, match="is no 64-bit ELF file"):
        needed_libraries(Path(__file__))


def command(*arguments, home=cuda_build.HOME, **environment):
    code = (
        "from pathlib import Path; from mla_opt.kernels.building import cuda_build;"
        f" cuda_build.HOME = Path({os.fspath(home)!r}); from mla_opt.cli import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@needs_nvcc
def test_command(tmp_path):
    """With a kernel of one line: the others are compiled above."""
    (tmp_path / "home" / "cuda").mkdir(parents=True)
    (tmp_path / "home" / "cuda" / "kernel.cu").write_text("__global__ void kernel() {}\n")
    out = str(tmp_path / "out")
    done = command("build-kernels", "--arch", "90", "-o", out, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert f"built {tmp_path / 'out' / 'libmla_opt_cuda.so'}" in done.stdout
    assert "sm_90: 1 kernels, at most" in done.stdout
    assert "no spills" in done.stdout
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["libmla_opt_cuda.so"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arch", "70"), "need architecture 80 or newer"),
        (("--arch", "80", "--nvcc", "/nowhere/nvcc"), "cannot be run"),
        (("--arch", "80", "--tensorrt-headers", "/nowhere"), "has no NvInferRuntime.h"),
        (("--arch", "80", "--flashinfer-headers", "/nowhere"), "has no include/flashinfer/attent"),
    ],
)
def test_command_refuses(tmp_path, arguments, message):
    done = command("build-kernels", *arguments, "-o", str(tmp_path))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
