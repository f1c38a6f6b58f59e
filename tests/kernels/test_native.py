"""The kernel's sources under the sanitizers: random problems on exactly sized memory, on threads.

Nothing of ONNX Runtime is in it. What one run of `fuzz` prints is repeated by its seed and number.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mla_opt.kernels.build import HOME, compiler

NATIVE = Path(__file__).parent / "native"
FUZZ = [
    *sorted((HOME / "cpu").glob("*.cpp")),
    HOME / "onnxruntime" / "operands.cpp",
    *(
        NATIVE / f"{name}.cpp"
        for name in ("allocations", "definition", "fuzz", "hosts", "problems")
    ),
]
OPTIONS = ["-std=c++17", "-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
WRAPPED = [f"-Wl,--wrap={name}" for name in ("malloc", "aligned_alloc", "_Znwm")]
MEMORY, THREADS = "address,undefined", "thread"
# Problems that each run takes, and the word by which each sanitizer names what was broken for it.
PROBLEMS = {MEMORY: 1500, THREADS: 500}
BROKEN = {
    MEMORY: [("scale", "expected"), ("buffer", "heap-buffer-overflow")],
    THREADS: [("race", "data race")],
}

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the linker of this system cannot wrap functions"
)


def compile_all(sources: list[Path], program: Path, options: list[str]) -> Path:
    def compiled(source: Path) -> str:
        result = program.with_name(f"{program.name}-{source.stem}.o")
        run([*compiler(), *OPTIONS, *options, "-c", str(source), "-o", str(result)])
        return str(result)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    run([*compiler(), *options, *WRAPPED, "-pthread", "-o", str(program), *objects])
    return program


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def sanitized(sanitizer: str, folder: Path) -> Path:
    """The fuzzer with a sanitizer, if the compiler has that one."""
    option = f"-fsanitize={sanitizer}"
    empty = folder / "empty.cpp"
    empty.write_text("int main() { return 0; }\n")
    command = [*compiler(), option, str(empty), "-o", str(folder / "empty")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"{compiler()[0]} has no {option}")
    return compile_all(FUZZ, folder / "fuzz", [option])


def break_it(fuzz: Path, what: str) -> str:
    done = subprocess.run(
        [str(fuzz), "1", "0", "40", what], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0, f"nobody noticed the broken {what}"
    return done.stdout + done.stderr


@pytest.mark.parametrize("sanitizer", [MEMORY, THREADS])
def test_random_problems(sanitizer, tmp_path):
    """Legal ones are computed, others refused, nothing else is read or written."""
    fuzz = sanitized(sanitizer, tmp_path)
    for what, said in BROKEN[sanitizer]:
        assert said in break_it(fuzz, what)
    run([str(fuzz), "1", "0", str(PROBLEMS[sanitizer])])


@pytest.mark.fuzz
@pytest.mark.parametrize("sanitizer", [MEMORY, THREADS])
def test_many_more_random_problems(sanitizer, tmp_path):
    """Other ones each time; MLA_OPT_FUZZ_SEED repeats them."""
    seed = os.environ.get("MLA_OPT_FUZZ_SEED", str(int.from_bytes(os.urandom(4))))
    run([str(sanitized(sanitizer, tmp_path)), seed, "0", str(100 * PROBLEMS[sanitizer])])


def test_conversions_of_all_16_bit_numbers(tmp_path):
    program = tmp_path / "elements"
    run([*compiler(), *OPTIONS, str(NATIVE / "elements.cpp"), "-o", str(program)])
    run([str(program)])
