"""``mla_opt::LatentAttention``: its contract, its definition in NumPy, and its ONNX body."""

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
