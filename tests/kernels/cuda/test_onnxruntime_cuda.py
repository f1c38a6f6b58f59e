"""The operator of ONNX Runtime's CUDA provider, in ONNX Runtime, on the emulated GPU."""

from __future__ import annotations

import os

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from mla_opt.operator import Signature
from mla_opt.ort_values import from_ort_value, to_ort_value
from tests.kernels.cuda.problems import BFLOAT16, Case, check, expected, operands
from tests.operator import cases

HALF = np.dtype(np.float16)
ELEMENTS = {HALF: ir.DataType.FLOAT16, BFLOAT16: ir.DataType.BFLOAT16}
CASES = {
    "growing": Case(heads=3, past=35, query_len=2, causal=True, dtype=HALF),
    "growing, split": Case(heads=3, past=35, split_cache=True, sink=True, dtype=HALF),
    "in place": Case(heads=3, lengths=(0, 33), causal=True, dtype=HALF),
    "in place, split": Case(heads=3, lengths=(0, 33), split_cache=True, bias="boolean", dtype=HALF),
    "no cache": Case(heads=3, has_cache=False, query_len=20, bias="additive", dtype=HALF),
    "bfloat16": Case(heads=3, lengths=(5, 33), sink=True),
    "parts of the keys": Case(heads=1, past=100, dtype=HALF),
}


def signature_of(case: Case) -> Signature:
    return Signature(
        has_cache=case.has_cache,
        in_place=case.in_place,
        split=case.split_cache,
        bias=case.bias,
        sink=case.sink,
        causal=case.causal,
    )


def session_of(emulator, case: Case, feeds: dict) -> ort.InferenceSession:
    proto = cases.model(
        signature_of(case), feeds, scale=case.scale, rank=case.rank,
        element_type=ELEMENTS[case.dtype],
    )  # fmt: skip
    options = ort.SessionOptions()
    options.register_custom_ops_library(os.fspath(emulator.library.path))
    return ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(emulator, case: Case, feeds: dict) -> dict[str, np.ndarray]:
    emulator.become("90", 0)
    session = session_of(emulator, case, feeds)
    values = {name: to_ort_value(array) for name, array in feeds.items()}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(from_ort_value, session.run_with_ort_values(names, values))))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_it_computes_the_operator(emulator, case):
    feeds = operands(case)
    wanted = expected(case, feeds)
    check(case, wanted, run(emulator, case, feeds))


def test_it_is_the_kernel_of_cuda_that_runs(emulator):
    """The function body would take this, and the kernels of CUDA do not."""
    case = Case(heads=3, past=5, rank=64, rope=0, dtype=HALF)
    with pytest.raises(Exception, match="on CUDA there are kernels for 512 and 64"):
        run(emulator, case, operands(case))
