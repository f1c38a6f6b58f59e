"""The kernel's sources under the sanitizers: random problems on exactly sized memory, on threads.

Nothing of ONNX Runtime is in it. What one run of `fuzz` prints is repeated by its seed and number.

NEON is tested on 64-bit ARM machines like every other tier, and on others where a cross compiler
and QEMU's user-mode emulation are (Debian: ``apt-get install g++-aarch64-linux-gnu qemu-user``).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mla_opt.kernels.building.build import HOME, compiler

NATIVE = Path(__file__).parent / "native"
FUZZ = [
    *sorted((HOME / "cpu").glob("*.cpp")),
    HOME / "onnxruntime" / "operands.cpp",
    HOME / "onnxruntime" / "multi_head_operands.cpp",
    HOME / "onnxruntime" / "matmul_nbits_operands.cpp",
    *(
        NATIVE / f"{name}.cpp"
        for name in (
            "allocations",
            "definition",
            "fuzz",
            "hosts",
            "problems",
            "random_multi_head",
            "random_nbits",
        )
    ),
]
OPTIONS = ["-std=c++17", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
# Few problems take less time than compiling them well does.
FEW, MANY = "-O0", "-O1"
# As the library is compiled: emulated code is slow enough.
EMULATED_OPTIONS = ["-std=c++17", "-O2", "-ffp-contract=fast", "-static"]
ARM_COMPILERS = ("aarch64-linux-gnu-g++",)
ARM_EMULATORS = ("qemu-aarch64", "qemu-aarch64-static")
WRAPPED = [f"-Wl,--wrap={name}" for name in ("malloc", "aligned_alloc", "_Znwm")]
MEMORY, THREADS = "address,undefined", "thread"
# Problems that each run takes, and the word by which each sanitizer names what was broken for it.
PROBLEMS = {MEMORY: 200, THREADS: 40}
EMULATED_PROBLEMS = 400
BROKEN = {
    MEMORY: [("scale", "expected"), ("buffer", "heap-buffer-overflow")],
    THREADS: [("race", "data race")],
}

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the linker of this system cannot wrap functions"
)


def compile_all(command: list[str], sources: list[Path], program: Path) -> Path:
    def compiled(source: Path) -> str:
        result = program.with_name(f"{program.name}-{source.stem}.o")
        run([*command, "-c", str(source), "-o", str(result)])
        return str(result)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    run([*command, *WRAPPED, "-pthread", "-o", str(program), *objects])
    return program


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def sanitized(sanitizer: str, folder: Path, level: str) -> Path:
    """The fuzzer with a sanitizer, if the compiler has that one."""
    option = f"-fsanitize={sanitizer}"
    empty = folder / "empty.cpp"
    empty.write_text("int main() { return 0; }\n")
    command = [*compiler(), option, str(empty), "-o", str(folder / "empty")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"{compiler()[0]} has no {option}")
    return compile_all([*compiler(), *OPTIONS, level, option], FUZZ, folder / "fuzz")


def break_it(fuzz: list[str], what: str) -> str:
    done = subprocess.run(
        [*fuzz, "1", "0", "40", what], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0, f"nobody noticed the broken {what}"
    return done.stdout + done.stderr


@pytest.mark.sanitizers
@pytest.mark.parametrize("sanitizer", [MEMORY, THREADS])
def test_random_problems(sanitizer, tmp_path):
    """Legal ones are computed, others refused, nothing else is read or written."""
    fuzz = sanitized(sanitizer, tmp_path, FEW)
    for what, said in BROKEN[sanitizer]:
        assert said in break_it([str(fuzz)], what)
    run([str(fuzz), "1", "0", str(PROBLEMS[sanitizer])])


@pytest.mark.fuzz
@pytest.mark.parametrize("sanitizer", [MEMORY, THREADS])
def test_many_more_random_problems(sanitizer, tmp_path):
    """Other ones each time; MLA_OPT_FUZZ_SEED repeats them."""
    seed = os.environ.get("MLA_OPT_FUZZ_SEED", str(int.from_bytes(os.urandom(4))))
    fuzz = sanitized(sanitizer, tmp_path, MANY)
    run([str(fuzz), seed, "0", str(1000 * PROBLEMS[sanitizer])])


def first_there(names: tuple[str, ...]) -> str:
    """The path of the first of these programs that is installed."""
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    pytest.skip(f"there is no {' or '.join(names)}")


@pytest.mark.skipif(platform.machine() == "aarch64", reason="NEON is among this machine's tiers")
def test_random_problems_with_neon(tmp_path):
    """Compiled for 64-bit ARM and emulated."""
    command = [first_there(ARM_COMPILERS), *EMULATED_OPTIONS]
    emulated = [first_there(ARM_EMULATORS), str(compile_all(command, FUZZ, tmp_path / "fuzz"))]
    tiers = subprocess.run(emulated, capture_output=True, text=True, check=True).stdout
    assert tiers.split() == ["neon", "portable"]
    assert "expected" in break_it(emulated, "scale")
    run([*emulated, "1", "0", str(EMULATED_PROBLEMS)])


OLDER = [f"-DMLA_OPT_HAS_{what}=0" for what in ("FP16", "AMX")]
OTHERS = ("clang++", "g++-9", "g++-10", "g++-11")


@pytest.mark.parametrize("name", [None, *OTHERS])
def test_compilers_without_the_newest_instructions(name):
    """What they lack is left out: GCC 11 has no float16 for AVX-512; Clang is not asked."""
    if name is not None and not shutil.which(name):
        pytest.skip(f"{name} is not here")
    command = [name] if name else [*compiler(), *OLDER]
    sources = [*sorted((HOME / "cpu").glob("*.cpp")), *(HOME / "onnxruntime").glob("*.cpp")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(
            pool.map(
                lambda path: run([*command, "-std=c++17", "-fsyntax-only", str(path)]), sources
            )
        )


def test_conversions_of_all_16_bit_numbers(tmp_path):
    program = tmp_path / "elements"
    run([*compiler(), *OPTIONS, str(NATIVE / "elements.cpp"), "-o", str(program)])
    run([str(program)])
