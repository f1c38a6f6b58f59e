"""The TensorRT that is installed: `tensorrt`, or `tensorrt_rtx`, which builds without a GPU.

Both have one API; neither is imported before it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from mla_opt.engines import rtx_library
from mla_opt.errors import InputError

Runtime = Literal["tensorrt", "rtx"]

#: The module of each runtime, and the package that brings it.
MODULES = {
    "tensorrt": ("tensorrt", "tensorrt"),
    "rtx": ("tensorrt_rtx", "tensorrt-rtx-cu13"),
}
#: What the lowered graphs need, and what it is for.
NEEDED = {
    "IKVCacheUpdateLayer": "caches that are written in place",
    "IAttention": "fused attention",
}

Sink = Callable[[str, str], None]
"""Told the severity (``error``, ``warning``, ``verbose``) and the text of a line of the log."""


@dataclass(frozen=True, slots=True)
class TensorRT:
    """One TensorRT.

    Attributes:
        module: the Python module.
        runtime: which of the two.
        log: the logger that everything of it must be made with.
    """

    module: Any
    runtime: Runtime
    log: Any

    @property
    def version(self) -> str:
        """Its version."""
        return str(self.module.__version__)

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{'TensorRT-RTX' if self.runtime == 'rtx' else 'TensorRT'} {self.version}"


@cache
def load(runtime: Runtime) -> TensorRT:
    """Return the TensorRT of this process, imported once: it keeps its first logger for good.

    Raises:
        InputError: it is not installed, cannot be loaded, or is too old.
    """
    module_name, package = MODULES[runtime]
    if runtime == "rtx":
        rtx_library.open_libraries()
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"{module_name} cannot be imported ({error}): pip install {package}, or write only the"
            " ONNX files (--onnx-only)"
        ) from error
    for name, purpose in NEEDED.items():
        if not hasattr(module, name):
            raise InputError(
                f"{module_name} {module.__version__} has no {name}, so no {purpose}; install a"
                f" newer one (pip install -U {package})"
            )
    return TensorRT(module, runtime, _logger(module))


def check_plugins(trt: TensorRT) -> None:
    """Raise `InputError` where this TensorRT cannot take a plugin, rather than be aborted by it."""
    if not hasattr(trt.module.PreviewFeature, "ALIASED_PLUGIN_IO_10_03"):
        raise InputError(
            f"{trt.name} has no plugins that write their inputs; install a newer one, or lower to"
            " standard operators (--no-plugin)"
        )
    if trt.runtime == "rtx" and not rtx_library.finds_itself():
        raise InputError(
            f"{trt.name} cannot open itself as {rtx_library.SELF}, which it does when a plugin is"
            f" made, and would end the process: {rtx_library.remedy()}; or use standard operators"
            " (--no-plugin)"
        )


def _logger(module: Any) -> Any:
    """A logger whose ``sink`` can be set."""
    severities = module.ILogger.Severity

    class Log(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.sink: Sink | None = None

        def log(self, severity: Any, message: str) -> None:
            if self.sink is not None:
                errors = (severities.ERROR, severities.INTERNAL_ERROR)
                kind = "error" if severity in errors else "verbose"
                self.sink("warning" if severity == severities.WARNING else kind, message)

    return Log()
