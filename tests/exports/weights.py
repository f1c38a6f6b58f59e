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
            parameter.copy_(noise(name, tuple(parameter.shape), seed))
    return model


def noise(name: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """The numbers of a parameter."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
    numbers = torch.randn(shape, generator=generator)
    if "embed" in name or "sinks" in name:
        return numbers * EMBEDDING_STD
    if len(shape) > 1:
        return numbers * MATRIX_STD
    return numbers * VECTOR_STD + (1.0 if "norm" in name and "bias" not in name else 0.0)
