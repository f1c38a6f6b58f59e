"""PyTorch programs as verification runs them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

import onnx_ir as ir
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from mla_opt.errors import require_memory
from mla_opt.graphs.torch.skeleton import skeleton
from mla_opt.graphs.torch.values import to_array, to_tensor
from mla_opt.programs.calling import Entrance
from mla_opt.programs.frontends import Opened
from mla_opt.verification.breakable import Breakable
from mla_opt.verification.running import Array, RunError, Runnable
from mla_opt.verification.torch.breaking import BreakableProgram


@dataclass(frozen=True, slots=True)
class OpenProgram:
    """A program to look into and to run.

    Attributes:
        label: how messages call it.
        opened: the program, its lifted form and its entrance.
        model: its wiring.
    """

    label: str
    opened: Opened
    model: ir.Model

    @classmethod
    def of(cls, label: str, opened: Opened) -> OpenProgram:
        """Look into an opened program."""
        return cls(label, opened, skeleton(opened.program))

    def session(self, optimized: bool = True) -> ProgramSession:
        """Make it callable; not ``optimized``: with PyTorch's plain kernels."""
        try:
            module = self.opened.module()
        except Exception as error:  # whatever torch.export raises
            require_memory(error)
            raise RunError(_said(self.label, "load", error)) from error
        return ProgramSession(self.label, module, self.opened.entrance, plain=not optimized)

    @property
    def narrow(self) -> bool:
        """Never: PyTorch runs bfloat16 as it is."""
        return False

    def twin(self, wide: bool = False, rows: bool = False) -> OpenProgram:
        """Itself: programs run as they are."""
        return self

    def with_weights_of(self, other: Runnable) -> tuple[OpenProgram, int]:
        """Itself: quantized programs are compared as they are."""
        return self, 0

    def breakable(self) -> BreakableProgram:
        """The lifted program, to be copied and broken."""
        return BreakableProgram(self.opened.program)

    def broken(self, label: str, model: Breakable) -> OpenProgram:
        """A broken copy, to be run."""
        assert isinstance(model, BreakableProgram)
        return replace(self, label=label, opened=self.opened.rebuilt(model.program))


@dataclass(frozen=True, slots=True)
class ProgramSession:
    """A callable program; states that it keeps itself are as they were before every call."""

    label: str
    module: torch.nn.Module
    entrance: Entrance
    plain: bool = False

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name. Raises `RunError`."""
        tensors = {name: to_tensor(array.copy()) for name, array in feeds.items()}
        kept = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        try:
            with ExitStack() as stack:
                if self.plain:
                    # Turning oneDNN off and on makes PyTorch warn of GPUs that nobody asked for.
                    stack.enter_context(warnings.catch_warnings())
                    warnings.filterwarnings("ignore", "TF32 acceleration", UserWarning)
                    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                    stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
                outputs = self.entrance.call(self.module, tensors)
        except Exception as error:  # whatever PyTorch's operators and guards raise
            require_memory(error)
            raise RunError(_said(self.label, "run", error)) from error
        finally:
            with torch.no_grad():
                for name, buffer in self.module.named_buffers():
                    buffer.copy_(kept[name])
        return {name: to_array(tensor) for name, tensor in outputs.items()}


def _said(label: str, verb: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:400]
    return f"PyTorch does not {verb} the {label} model: {reason}"
