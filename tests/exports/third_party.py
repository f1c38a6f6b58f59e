"""Latent attention as other packages write it, exported from those packages as they are.

They cannot share an environment with the tests: the variable `MLA_OPT_THIRD_PARTY_PYTHON` names a
Python that has `requirements-third-party.txt`, and this package with what it depends on.

    python -m tests.exports.third_party NAME EXPORTER PATH

writes an ONNX file, or a program where the exporter is ``export``. Each has two layers, random
weights, and no two sizes that are equal. `tests.exports.sweep` has a row for each.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

VARIABLE = "MLA_OPT_THIRD_PARTY_PYTHON"
REQUIREMENTS = Path(__file__).with_name("requirements-third-party.txt")
#: `dynamo` and `torchscript` are torch.onnx.export, `export` is torch.export, `own` is the package.
EXPORTERS = {"dynamo18": 18, "dynamo23": 23, "torchscript": 17, "export": 0, "own": 0}
TORCH = ("dynamo18", "dynamo23", "torchscript", "export")
LAYERS, HEADS, NOPE, ROPE, VALUE, LATENT, QUERY, HIDDEN, WORDS = 2, 3, 10, 6, 14, 22, 26, 34, 61
TOKENS = 512


@dataclasses.dataclass(frozen=True)
class Implementation:
    """How a package is brought to write its attention.

    Attributes:
        name: of the row.
        package: of PyPI, whose version the row tells.
        build: a module that is called with ``inputs``.
        inputs: names, and shapes at the example B = 2, S = 5.
        exporters: of `EXPORTERS`.
    """

    name: str
    package: str
    build: Callable[[], Any]
    inputs: dict[str, tuple[int, ...]]
    exporters: tuple[str, ...] = TORCH


class Stack(nn.Module):
    """Attentions one after the other, each beside its residual."""

    def __init__(self, attentions: list[nn.Module], call: Callable[[nn.Module, Tensor], Tensor]):
        super().__init__()
        self.attentions = nn.ModuleList(attentions)
        self.call = call

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states after all layers."""
        for attention in self.attentions:
            hidden = hidden + self.call(attention, hidden)
        return hidden


def litgpt() -> nn.Module:
    """`litgpt.model.GPT`, no cache."""
    from litgpt.config import Config
    from litgpt.model import GPT

    latent = {
        "q_lora_rank": QUERY,
        "kv_lora_rank": LATENT,
        "qk_rope_head_dim": ROPE,
        "qk_nope_head_dim": NOPE,
        "v_head_dim": VALUE,
    }
    return GPT(
        Config(
            name="latent", block_size=TOKENS, vocab_size=WORDS, padded_vocab_size=WORDS,
            n_layer=LAYERS, n_embd=HIDDEN, n_head=HEADS, n_query_groups=HEADS,
            head_size=NOPE + ROPE,
            rotary_percentage=1.0, parallel_residual=False, bias=False, norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP", intermediate_size=38, latent_attention=latent,
        )
    )  # fmt: skip


def torchtitan() -> nn.Module:
    """Its DeepSeek-V3 attention, on `scaled_dot_product_attention`."""
    from torchtitan.models.common.attention import ScaledDotProductAttention
    from torchtitan.models.common.linear import Linear
    from torchtitan.models.common.nn_modules import RMSNorm
    from torchtitan.models.common.rope import ComplexRoPE
    from torchtitan.models.deepseek_v3.model import Attention

    def linear(wide: int, narrow: int) -> Any:
        return Linear.Config(in_features=wide, out_features=narrow, bias=False)

    config = Attention.Config(
        n_heads=HEADS, dim=HIDDEN, q_lora_rank=QUERY, kv_lora_rank=LATENT,
        qk_nope_head_dim=NOPE, qk_rope_head_dim=ROPE, v_head_dim=VALUE,
        wq_a=linear(HIDDEN, QUERY), wq_b=linear(QUERY, HEADS * (NOPE + ROPE)),
        wkv_a=linear(HIDDEN, LATENT + ROPE), wkv_b=linear(LATENT, HEADS * (NOPE + VALUE)),
        wo=linear(HEADS * VALUE, HIDDEN), q_norm=RMSNorm.Config(normalized_shape=QUERY),
        kv_norm=RMSNorm.Config(normalized_shape=LATENT),
        rope=ComplexRoPE.Config(dim=ROPE, max_seq_len=TOKENS),
        inner_attention=ScaledDotProductAttention.Config(),
    )  # fmt: skip
    return Stack([config.build() for _ in range(LAYERS)], lambda layer, hidden: layer(hidden, None))


def x_transformers(flash: bool) -> Callable[[], nn.Module]:
    """`Decoder` with latent queries, keys and values, and heads of keys that are rotated."""

    def build() -> nn.Module:
        from x_transformers import Decoder

        return Decoder(
            dim=HIDDEN, depth=LAYERS, heads=HEADS, attn_dim_head=NOPE, rotary_pos_emb=True,
            attn_use_latent_q=True, attn_dim_latent_q=QUERY, attn_use_latent_kv=True,
            attn_dim_latent_kv=LATENT, attn_latent_rope_subheads=1, attn_flash=flash,
        )  # fmt: skip

    return build


def fla() -> nn.Module:
    """`MultiheadLatentAttention`; its Triton kernels are replaced by what they compute."""
    from fla.layers import mla

    class Rotary(nn.Module):
        """Halves turned by their token's angles; tokens before heads."""

        def __init__(self, dim: int, base: float) -> None:
            super().__init__()
            self.register_buffer("inverse", base ** -(torch.arange(0, dim, 2) / dim))

        def forward(self, *parts: Tensor, **_: Any) -> list[Tensor]:
            """Queries and keys `[B, T, H, R]`."""
            places = torch.arange(parts[0].shape[1], dtype=torch.float32)
            angles = (places[:, None] * self.inverse)[None, :, None]
            cos, sin = angles.cos(), angles.sin()
            turned = []
            for part in parts:
                left, right = part.chunk(2, dim=-1)
                turned.append(torch.cat([left * cos - right * sin, right * cos + left * sin], -1))
            return turned

    def attend(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        heads_first = (each.transpose(1, 2) for each in (query, key, value))
        output = nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True)
        return output.transpose(1, 2)

    mla.RMSNorm, mla.RotaryEmbedding, mla.flash_attn_func = nn.RMSNorm, Rotary, attend
    layers: list[nn.Module] = [
        mla.MultiheadLatentAttention(
            hidden_size=HIDDEN, num_heads=HEADS, q_lora_rank=QUERY, qk_rope_head_dim=ROPE,
            kv_lora_rank=LATENT, v_head_dim=VALUE, qk_nope_head_dim=NOPE, qk_head_dim=NOPE + ROPE,
        )
        for _ in range(LAYERS)
    ]  # fmt: skip
    return Stack(layers, lambda layer, hidden: layer(hidden, None)[0])


def mobius() -> Any:
    """`DeepSeekV3CausalLMModel` as ONNX, with the cache that it has."""
    from mobius._builder import build_from_module
    from mobius._testing import make_config
    from mobius.models.deepseek import DeepSeekV3CausalLMModel

    config = make_config(
        vocab_size=WORDS, hidden_size=HIDDEN, intermediate_size=38, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=NOPE + ROPE,
        q_lora_rank=QUERY, kv_lora_rank=LATENT, qk_nope_head_dim=NOPE, qk_rope_head_dim=ROPE,
        v_head_dim=VALUE, rope_interleave=True, rms_norm_eps=1e-6, max_position_embeddings=TOKENS,
    )  # fmt: skip
    return build_from_module(DeepSeekV3CausalLMModel(config), config)["model"]


HIDDEN_STATES = {"hidden": (2, 5, HIDDEN)}
IMPLEMENTATIONS = {
    each.name: each
    for each in (
        Implementation("litgpt", "litgpt", litgpt, {"idx": (2, 5)}),
        Implementation("torchtitan", "torchtitan", torchtitan, HIDDEN_STATES),
        Implementation("x-transformers", "x-transformers", x_transformers(False), HIDDEN_STATES),
        Implementation(
            "x-transformers, flash", "x-transformers", x_transformers(True), HIDDEN_STATES
        ),
        Implementation("fla", "flash-linear-attention", fla, HIDDEN_STATES),
        Implementation("mobius", "mobius-onnx", mobius, {}, ("own",)),
    )
}


def pairs() -> list[tuple[str, str]]:
    """Every implementation by every exporter that takes it."""
    return [(each.name, way) for each in IMPLEMENTATIONS.values() for way in each.exporters]


def version(name: str) -> str:
    """Of the package, as it is pinned."""
    package = IMPLEMENTATIONS[name].package
    lines = REQUIREMENTS.read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{package}=="))


def exported(name: str, exporter: str) -> Path:
    """The file, built once and kept.

    Raises:
        LookupError: if no Python has the packages.
        ExportError: with what the exporter said.
    """
    from tests.exports import cache

    python = interpreter()
    digest = hashlib.sha256(Path(__file__).read_bytes() + REQUIREMENTS.read_bytes()).hexdigest()
    suffix = ".pt2" if exporter == "export" else ".onnx"
    stem = f"{name.replace(', ', '-')}-{exporter}-{digest[:10]}"

    def build(path: Path) -> None:
        cache.run_module(python, "tests.exports.third_party", name, exporter, str(path))

    return cache.built_once(cache.cache_folder() / f"{stem}{suffix}", build)


def interpreter() -> str:
    """The Python that has these packages.

    Raises:
        LookupError: if none is named.
    """
    python = os.environ.get(VARIABLE)
    if not python:
        raise LookupError(f"{VARIABLE} names no Python with requirements-third-party.txt installed")
    return python


def export(name: str, exporter: str, path: Path) -> None:
    """Write what an exporter makes of an implementation."""
    torch.manual_seed(0)
    implementation = IMPLEMENTATIONS[name]
    built = implementation.build()
    if exporter == "own":
        _save_own(built, path)
        return
    module = randomized(built).eval()
    given = tuple(
        torch.randn(shape) if len(shape) == 3 else torch.randint(0, WORDS, shape)
        for shape in implementation.inputs.values()
    )
    names = list(implementation.inputs)
    with torch.no_grad():
        if exporter == "torchscript":
            _torchscript(module, given, names, path)
        elif exporter == "export":
            torch.export.save(_program(module, given), path)
        else:
            _dynamo(module, given, names, EXPORTERS[exporter], path)


def randomized(module: nn.Module) -> nn.Module:
    """Some of these leave weights as memory has them."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
    return module


def _program(module: nn.Module, given: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    batch, tokens = torch.export.Dim("batch", min=1), torch.export.Dim("tokens", min=1, max=TOKENS)
    shapes = tuple({0: batch, 1: tokens} for _ in given)
    return torch.export.export(module, given, dynamic_shapes=shapes, strict=False)


def _dynamo(
    module: nn.Module, given: tuple[Tensor, ...], names: list[str], opset: int, path: Path
) -> None:
    program = _program(module, given)
    torch.onnx.export(
        program, (), str(path), dynamo=True, opset_version=opset, input_names=names,
        external_data=False, verbose=False,
    )  # fmt: skip


def _torchscript(
    module: nn.Module, given: tuple[Tensor, ...], names: list[str], path: Path
) -> None:
    axes = {name: {0: "batch", 1: "tokens"} for name in names}
    torch.onnx.export(
        module, given, str(path), dynamo=False, opset_version=EXPORTERS["torchscript"],
        input_names=names, output_names=["output"], dynamic_axes=axes,
    )  # fmt: skip


def _save_own(model: Any, path: Path) -> None:
    """A graph whose weights are only named gets random ones."""
    import numpy as np
    import onnx_ir as ir

    rng = np.random.default_rng(0)
    for value in model.graph.initializers.values():
        if value.const_value is None:
            shape = tuple(int(size) for size in value.shape)
            array = rng.standard_normal(shape) / max(shape[-1:], default=1) ** 0.5
            value.const_value = ir.tensor(array.astype(value.dtype.numpy()), name=value.name)
    ir.save(model, path)


def main(arguments: list[str]) -> int:
    """`NAME EXPORTER PATH`."""
    from tests.exports.cache import failing_on_one_line

    name, exporter, path = arguments
    return failing_on_one_line(lambda: export(name, exporter, Path(path)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
