"""``mla_opt::LatentAttention``: its contract, its definition in NumPy, and its ONNX body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mla_opt.operator.contract import DOMAIN, OP_TYPE, VERSION, Signature
    from mla_opt.operator.onnx.function_body import function_body
    from mla_opt.operator.reference import LatentAttentionOutputs, latent_attention

__all__ = [
    "DOMAIN",
    "OP_TYPE",
    "VERSION",
    "LatentAttentionOutputs",
    "Signature",
    "function_body",
    "latent_attention",
]

_HOMES = {
    "LatentAttentionOutputs": "reference",
    "function_body": "onnx.function_body",
    "latent_attention": "reference",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: PyTorch's side needs no ONNX, and is there in every process."""
    if name not in __all__:
        raise AttributeError(f"module 'mla_opt.operator' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"mla_opt.operator.{_HOMES.get(name, 'contract')}"), name)
