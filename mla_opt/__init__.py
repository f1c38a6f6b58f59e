"""Latent attention, absorbed and fused in the model you have.

    import mla_opt

    result = mla_opt.optimize("model.onnx")
    onnx_ir.save(result.model, "model.mla.onnx")

`optimize` rewrites, `optimize_folder` does so to a folder with all that is in it; `inspect` and
`find` only look, `verify` compares two models by running them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mla_opt.api import OptimizeResult, find, inspect, optimize
    from mla_opt.errors import (
        InputError,
        KernelUnavailableError,
        MlaOptError,
        NothingMatchedError,
        PassError,
        Refusal,
        RefusedError,
        VerificationError,
    )
    from mla_opt.folders import FolderResult, optimize_folder
    from mla_opt.geometry import MlaGeometry
    from mla_opt.kernels import kernel_library
    from mla_opt.operator.torch.onnx import attach_function_bodies, onnx_translation_table
    from mla_opt.operator.torch.sharding import register_sharding
    from mla_opt.report import InspectionReport, OptimizationReport
    from mla_opt.verification import ParityReport, verify

__all__ = [
    "FolderResult",
    "InputError",
    "InspectionReport",
    "KernelUnavailableError",
    "MlaGeometry",
    "MlaOptError",
    "NothingMatchedError",
    "OptimizationReport",
    "OptimizeResult",
    "ParityReport",
    "PassError",
    "Refusal",
    "RefusedError",
    "VerificationError",
    "attach_function_bodies",
    "find",
    "inspect",
    "kernel_library",
    "onnx_translation_table",
    "optimize",
    "optimize_folder",
    "register_sharding",
    "verify",
]

# Read from the package's metadata when it is asked for.
__version__: str

_HOMES = {
    "OptimizeResult": "mla_opt.api",
    "find": "mla_opt.api",
    "inspect": "mla_opt.api",
    "optimize": "mla_opt.api",
    "FolderResult": "mla_opt.folders",
    "optimize_folder": "mla_opt.folders",
    "InspectionReport": "mla_opt.report",
    "OptimizationReport": "mla_opt.report",
    "MlaGeometry": "mla_opt.geometry",
    "kernel_library": "mla_opt.kernels",
    "attach_function_bodies": "mla_opt.operator.torch.onnx",
    "onnx_translation_table": "mla_opt.operator.torch.onnx",
    "register_sharding": "mla_opt.operator.torch.sharding",
    "ParityReport": "mla_opt.verification",
    "verify": "mla_opt.verification.verifier",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for: the package itself imports in no time."""
    if name == "__version__":
        from mla_opt.version import tool_version

        return tool_version()
    if name not in __all__:
        raise AttributeError(f"module 'mla_opt' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "mla_opt.errors")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
