"""ONNX Runtime's PagedAttention itself, by its CUDA provider, against its definition in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from tests.paged.evaluator import evaluate
from tests.paged.serving import Arrays, Server
from tests.paged.test_numbers import CALLS, CODES, HALF, REAL, Tokens, calibrated, paged
from tests.passes.test_lower_to_paged_attention import IS_LATENT

pytestmark = [
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in ort.get_available_providers() or not IS_LATENT,
        reason="needs onnxruntime-gpu, of a release whose PagedAttention knows latent rows",
    ),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]


class OnGpu:
    """A session of one model; its caches lie on the device, one buffer going in and out."""

    def __init__(self, model: ir.Model) -> None:
        providers = [("CUDAExecutionProvider", {"device_id": 0})]
        proto = ir.to_proto(model).SerializeToString()
        self.session = ort.InferenceSession(proto, providers=providers)
        assert self.session.get_providers()[0] == "CUDAExecutionProvider"

    def __call__(self, model: ir.Model, feeds: Arrays) -> Arrays:
        binding = self.session.io_binding()
        caches: dict[str, Any] = {}
        for name, array in feeds.items():
            if name.startswith("past."):
                made = name.replace("past", "present")
                caches[made] = ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
                binding.bind_ortvalue_input(name, caches[made])
                binding.bind_ortvalue_output(made, caches[made])
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
        binding.bind_output("hidden", "cpu")
        self.session.run_with_iobinding(binding)
        (hidden,) = (v for v in binding.get_outputs() if v.device_name().lower() == "cpu")
        return {"hidden": hidden.numpy(), **{name: v.numpy() for name, v in caches.items()}}


@pytest.mark.parametrize(
    ("block", "kind", "tolerance"),
    [(REAL, "float16", 4e-3), (HALF, "keep", 5e-3), (HALF, "int8", 1e-2)],
    ids=["real widths", "float16", "int8"],
)
def test_prompts_chunks_and_steps(block: Any, kind: str, tolerance: float) -> None:
    model = paged(block, cache_type=kind)
    scales = calibrated(block, CODES[kind]) if kind in CODES else {}
    servers = [Server(model, run, scales=scales) for run in (evaluate, OnGpu(model))]
    tokens = Tokens(block)
    for call in CALLS:
        given = {name: tokens.next(name, count) for name, count in call.items()}
        wanted, seen = (server.call(given) for server in servers)
        for name, expected in wanted.items():
            error = np.abs(seen[name].astype(np.float64) - expected).max()
            assert error < tolerance * np.abs(expected).max(), (name, call)
