"""Seeded random weights with enough spread that a wrong rewrite shows in the logits."""

from __future__ import annotations

import zlib

import torch

#: Standard deviations, by what the parameter is.
MATRIX_STD, EMBEDDING_STD, VECTOR_STD = 0.2, 1.0, 0.1


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Overwrite every parameter with noise that depends only on its name, its shape and the seed.

    The default initialisation (std 0.02) makes attention uniform, so that swapped heads or a wrong
    scale move the logits by less than rounding does.
    """
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(_noise(name, parameter, seed))
    return model


def _noise(name: str, parameter: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
    noise = torch.randn(parameter.shape, generator=generator)
    if "embed" in name or "sinks" in name:
        return noise * EMBEDDING_STD
    if parameter.ndim > 1:
        return noise * MATRIX_STD
    return noise * VECTOR_STD + (1.0 if "norm" in name and "bias" not in name else 0.0)
