"""The CUDA kernels on a GPU: ``python -m tests.gpu`` checks and times them in one call.

Needs a GPU with its driver, NumPy and ml_dtypes, and either ``libmla_opt_cuda.so`` or nvcc to make
it; everything else is used where it is there. Installs nothing.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path


def _without_onnx() -> None:
    """Let the reference be imported where ONNX, which the rest of its package needs, is not."""
    if importlib.util.find_spec("onnx_ir") is not None:
        return
    package = types.ModuleType("mla_opt.operator")
    package.__path__ = [str(Path(__file__).parents[2] / "mla_opt" / "operator")]
    sys.modules.setdefault("mla_opt.operator", package)


_without_onnx()
