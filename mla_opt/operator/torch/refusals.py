"""What the PyTorch operators do not do: gradients, and batching by `torch.vmap`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import _C, Tensor

_NO_GRADIENT = (
    "{} has no gradient: it is for inference. Run the model under torch.no_grad() or "
    "torch.inference_mode(), or train the model that this one was made from"
)
_NO_BATCHING = (
    "{} cannot be vectorized by torch.vmap: its operands have a batch axis of their own, "
    "which can take the vectorized one in"
)


class _WithoutGradient(torch.autograd.Function):
    """Runs forward, so that a model need not be frozen to be called, and not backward."""

    @staticmethod
    def forward(context: Any, name: str, run: Callable[..., Any], *operands: Tensor | None) -> Any:
        context.name = name
        return run(*operands)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> NoReturn:
        raise RuntimeError(_NO_GRADIENT.format(context.name))


def without_gradient(operator: Any) -> Callable[..., Any]:
    """Return the kernel of ``operator`` (an OpOverload) for the dispatch key Autograd.

    It costs every call some microseconds; without one PyTorch would warn instead of refuse.
    """

    def kernel(keyset: Any, *operands: Tensor | None, **attributes: Any) -> Any:
        def run(*operands: Tensor | None) -> Any:
            with _C._AutoDispatchBelowAutograd():
                below = keyset & _C._after_autograd_keyset
                return operator.redispatch(below, *operands, **attributes)

        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in operands):
            return _WithoutGradient.apply(operator._schema.name, run, *operands)  # type: ignore[no-untyped-call]
        return run(*operands)

    return kernel


def refuse_vmap(name: str) -> Callable[..., NoReturn]:
    """Return what stands where a batching rule of operator ``name`` would."""

    def refuse(info: Any, in_dims: Any, *operands: Any, **attributes: Any) -> NoReturn:
        raise RuntimeError(_NO_BATCHING.format(name))

    return refuse
