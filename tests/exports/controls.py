"""Models that have no latent attention, exported for real: to be left exactly as they were.

Half are ordinary transformers, half are near misses of latent attention (`lookalikes`). One genuine
block of the same making (`GENUINE`) shows that near misses are refused for what they differ in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tests.exports import cache, exporters, kept, lookalikes
from tests.exports.flat import FlatCausalLM
from tests.exports.spec import ExportSpec
from tests.exports.weights import randomize

#: The dynamic axes of each input.
Axes = dict[int, tuple[int, ...]]
Builder = Callable[[], nn.Module]
#: Modules of the harness that decide what a control's file holds.
SOURCES = ("controls", "lookalikes", "weights", "flat", "feeds", "exporters")


@dataclasses.dataclass(frozen=True)
class Control:
    """A model that must come out of the optimizer unchanged.

    Attributes:
        name: The key in `CONTROLS`.
        build: Makes the module to export: a `FlatCausalLM`, or one with an `example` method.
        why: Why this is no latent attention to rewrite.
        sound: Whether a rewrite would still compute the same, so that only profit forbids it.
    """

    name: str
    build: Builder
    why: str
    sound: bool = False


def export_control(control: Control, path: Path, opset: int = 18) -> None:
    """Write the ONNX file of a control by torch.onnx.export(dynamo=True)."""
    module = control.build()
    if isinstance(module, FlatCausalLM):
        exporters.export_dynamo(ExportSpec(control.name, opset=opset), path, module)
    else:
        _export_module(module, path, opset)


def exported_control(name: str, opset: int = 18) -> Path:
    """The file of a control: what is kept of it, or built in this process if it is not there."""
    if kept.there(stem(name, opset)):
        return cache.kept_export(stem(name, opset))
    path = cache.cache_folder() / f"{stem(name, opset)}-{cache.fingerprint(*SOURCES)}.onnx"
    return cache.built_once(path, lambda partial: export_control(by_name(name), partial, opset))


def by_name(name: str) -> Control:
    """A control, or the genuine block."""
    return GENUINE if name == GENUINE.name else CONTROLS[name]


def stem(name: str, opset: int) -> str:
    """The name of a control's file."""
    return f"control-{name}-opset{opset}"


def matrix() -> Iterator[tuple[str, int]]:
    """(name, opset): every control at 18, and at 23 those whose graph changes there."""
    for name in CONTROLS:
        yield name, 18
    for name in ("gpt2", "llama", "phi3", "bert", "separate_latents", "nonlinear_values"):
        yield name, 23


def example_inputs(name: str, batch: int = 2, length: int = 7) -> dict[str, Any]:
    """NumPy inputs of a control that is no causal LM."""
    module = by_name(name).build()
    tensors = module.example(batch, length)  # type: ignore[operator]
    return dict(zip(_input_names(module), (tensor.numpy() for tensor in tensors), strict=True))


def _export_module(module: Any, path: Path, opset: int) -> None:
    inputs = module.example(2, 7)
    axes = [module.dynamic.get(index, ()) for index in range(len(inputs))]
    with torch.no_grad():
        torch.onnx.export(
            module,
            inputs,
            str(path),
            dynamo=True,
            opset_version=opset,
            input_names=_input_names(module),
            output_names=["output"],
            dynamic_shapes=tuple(dict.fromkeys(some, torch.export.Dim.AUTO) for some in axes),
            external_data=False,
            verbose=False,
        )


def _input_names(module: Any) -> list[str]:
    return list(module.names)


class TextEncoder(nn.Module):
    """A transformers text encoder as a module of plain tensors."""

    names = ("input_ids", "attention_mask")
    dynamic: ClassVar[Axes] = {0: (0, 1), 1: (0, 1)}

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The last hidden state."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def example(self, batch: int, length: int) -> tuple[Tensor, ...]:
        """Token ids, and a mask over all of them."""
        ids = torch.arange(batch * length).reshape(batch, length) % 97
        return ids, torch.ones_like(ids)


class PixelEncoder(nn.Module):
    """A transformers encoder of images, or of spectrograms, of one fixed size."""

    names = ("pixels",)
    dynamic: ClassVar[Axes] = {0: (0,)}

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.shape = model, shape

    def forward(self, pixels: Tensor) -> Tensor:
        """The last hidden state."""
        return self.model(pixels).last_hidden_state

    def example(self, batch: int, length: int) -> tuple[Tensor, ...]:
        """Unit normal pixels."""
        return (torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(0)),)


class TextToText(nn.Module):
    """A transformers encoder and decoder of text, with attention across."""

    names = ("input_ids", "attention_mask", "decoder_input_ids")
    dynamic: ClassVar[Axes] = {0: (0, 1), 1: (0, 1), 2: (0, 1)}

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Any:
        """The decoder's last hidden state."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.model(
            **inputs, decoder_input_ids=decoder_input_ids, use_cache=False
        ).last_hidden_state

    def example(self, batch: int, length: int) -> tuple[Tensor, ...]:
        """Token ids, a mask over all of them, and fewer ids of the other side."""
        ids = torch.arange(batch * length).reshape(batch, length) % 97
        return ids, torch.ones_like(ids), ids[:, 2:].contiguous()


class SpeechToText(nn.Module):
    """A transformers encoder of spectrograms of one fixed size, and a decoder of text."""

    names = ("features", "decoder_input_ids")
    dynamic: ClassVar[Axes] = {0: (0,), 1: (0, 1)}

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.shape = model, shape

    def forward(self, features: Tensor, decoder_input_ids: Tensor) -> Any:
        """The decoder's last hidden state."""
        return self.model(
            features, decoder_input_ids=decoder_input_ids, use_cache=False
        ).last_hidden_state

    def example(self, batch: int, length: int) -> tuple[Tensor, ...]:
        """Unit normal features and token ids."""
        features = torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(0))
        return features, torch.arange(batch * length).reshape(batch, length) % 97


class Block(nn.Module):
    """An attention block over hidden states and an additive mask."""

    names = ("hidden", "mask")
    dynamic: ClassVar[Axes] = {0: (0, 1), 1: (0, 2, 3)}

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """What the block computes."""
        return self.block(hidden, mask)

    def example(self, batch: int, length: int) -> tuple[Tensor, ...]:
        """Unit normal hidden states and a causal mask."""
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(batch, length, lookalikes.HIDDEN, generator=generator)
        mask = torch.full((length, length), -1e9).triu(1)
        return hidden, mask.expand(batch, 1, length, length).contiguous()


class WeightAsInput(nn.Module):
    """A latent block whose kv_b weight is an input of the graph."""

    names = ("hidden", "mask", "kv_b_weight")
    dynamic: ClassVar[Axes] = Block.dynamic

    def __init__(self) -> None:
        super().__init__()
        self.block = lookalikes.LatentBlock()

    def forward(self, hidden: Tensor, mask: Tensor, kv_b_weight: Tensor) -> Tensor:
        """Runs the block with the weight given."""
        parameters = {"kv_b_proj.weight": kv_b_weight}
        return torch.func.functional_call(self.block, parameters, (hidden, mask))

    def example(self, batch: int, length: int) -> tuple[Tensor, ...]:
        """The block's inputs and a weight."""
        weight = self.block.kv_b_proj.weight.detach().clone()
        return (*Block(self.block).example(batch, length), weight)


class LinearAttention(nn.Module):
    """Kernel attention, elu(·) + 1 in place of a softmax: no scores to absorb anything into."""

    def __init__(self) -> None:
        super().__init__()
        width = lookalikes.HIDDEN
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Causal, by running sums over the tokens."""
        query = nn.functional.elu(lookalikes.to_heads(self.q_proj(hidden))) + 1
        key = nn.functional.elu(lookalikes.to_heads(self.k_proj(hidden))) + 1
        value = lookalikes.to_heads(self.v_proj(hidden))
        state = (key.unsqueeze(-1) * value.unsqueeze(-2)).cumsum(dim=2)
        norm = (query * key.cumsum(dim=2)).sum(-1, keepdim=True)
        mixed = (query.unsqueeze(-2) @ state).squeeze(-2) / norm
        return mixed.transpose(1, 2).flatten(2) + 0 * mask.sum()


def _lm(model_type: str, **options: Any) -> Builder:
    """A causal LM with a cache."""

    def build() -> nn.Module:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(model_type, **{**_DECODER, **options})
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        if getattr(model, "_can_set_experts_implementation", lambda: False)():
            model.set_experts_implementation("batched_mm")
        return FlatCausalLM(randomize(model).eval(), cache=True).eval()

    return build


def _text_encoder(class_name: str, config: str, **options: Any) -> Builder:
    def build() -> nn.Module:
        import transformers

        model = getattr(transformers, class_name)(getattr(transformers, config)(**options))
        return TextEncoder(randomize(model)).eval()

    return build


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(image_size=16, patch_size=4, **_ENCODER)
    model = ViTModel(config, add_pooling_layer=False)
    return PixelEncoder(randomize(model), (3, 16, 16)).eval()


def _whisper() -> nn.Module:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return PixelEncoder(randomize(WhisperEncoder(WhisperConfig(**_WHISPER))), (10, 30)).eval()


def _whisper_whole() -> nn.Module:
    from transformers import WhisperConfig, WhisperModel

    config = WhisperConfig(**_WHISPER, **_WHISPER_DECODER)
    return SpeechToText(randomize(WhisperModel(config)), (10, 30)).eval()


def _t5_whole() -> nn.Module:
    from transformers import T5Config, T5Model

    return TextToText(randomize(T5Model(T5Config(**_T5)))).eval()


def _block(block: type[nn.Module]) -> Builder:
    return lambda: Block(randomize(block())).eval()


_DECODER: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 84,
    "intermediate_size": 68,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 14,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_GPT2: dict[str, Any] = {"n_embd": 84, "n_layer": 2, "n_head": 3, "n_positions": 64}
_ENCODER: dict[str, Any] = {
    "hidden_size": 84,
    "intermediate_size": 68,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
}
_T5: dict[str, Any] = {
    "vocab_size": 97,
    "d_model": 84,
    "d_kv": 20,
    "d_ff": 68,
    "num_layers": 2,
    "num_heads": 3,
}
_WHISPER: dict[str, Any] = {
    "d_model": 84,
    "encoder_layers": 2,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 68,
    "num_mel_bins": 10,
    "max_source_positions": 15,
    "vocab_size": 97,
    "pad_token_id": 0,
}
_WHISPER_DECODER: dict[str, Any] = {
    "decoder_layers": 2,
    "decoder_attention_heads": 3,
    "decoder_ffn_dim": 68,
    "max_target_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def _models() -> list[Control]:
    grouped = "keys and values are projections of the hidden state, wider than they are"
    bert = {**_ENCODER, "vocab_size": 97, "max_position_embeddings": 64}
    return [
        Control(
            "gpt2",
            _lm("gpt2", **_GPT2),
            "queries come out of the same projection as keys and values",
        ),
        Control("llama", _lm("llama"), grouped),
        Control(
            "phi3",
            _lm("phi3"),
            "one projection makes queries, keys and values; rope lies in between",
        ),
        Control("qwen2", _lm("qwen2"), grouped),
        Control("qwen3", _lm("qwen3"), "keys are normalised per head"),
        Control("mixtral", _lm("mixtral", num_local_experts=4), grouped),
        Control("gemma", _lm("gemma"), grouped),
        Control(
            "multi_query",
            _lm("llama", num_key_value_heads=1),
            "one key head shared by all, but no expansion",
        ),
        Control(
            "bert", _text_encoder("BertModel", "BertConfig", **bert), "an encoder, with biases"
        ),
        Control(
            "t5_encoder",
            _text_encoder("T5EncoderModel", "T5Config", **_T5),
            "relative positions, no latent",
        ),
        Control("t5", _t5_whole, "a decoder that attends to its encoder as well"),
        Control("whisper_encoder", _whisper, "an audio encoder"),
        Control("whisper", _whisper_whole, "a decoder that attends to its encoder as well"),
        Control("vit", _vit, "an image encoder"),
        Control("linear_attention", _block(LinearAttention), "no softmax"),
    ]


def _near_misses() -> list[Control]:
    near = lookalikes
    return [
        Control(
            "query_from_latent_projection",
            _block(near.QueryFromLatentProjection),
            "queries depend on kv_b",
        ),
        Control("separate_latents", _block(near.SeparateLatents), "two latents", sound=True),
        Control(
            "rope_per_head", _block(near.RopePerHead), "the rotary key differs from head to head"
        ),
        Control(
            "wide_latent",
            _block(near.WideLatent),
            "the latent is wider than keys and values",
            sound=True,
        ),
        Control(
            "square_latent",
            _block(near.SquareLatent),
            "the latent is as wide as keys and values",
            sound=True,
        ),
        Control(
            "dynamic_projection", _block(near.DynamicProjection), "kv_b is computed from the input"
        ),
        Control(
            "weight_as_input",
            lambda: randomize(WeightAsInput()).eval(),
            "kv_b is an input of the graph",
        ),
        Control("nonlinear_values", _block(near.NonlinearValues), "SiLU after kv_b"),
        Control("nonlinear_keys", _block(near.NonlinearKeys), "keys are normalised after kv_b"),
        Control("token_mixing", _block(near.TokenMixing), "keys are summed over tokens after kv_b"),
        Control("token_reversal", _block(near.TokenReversal), "keys come from another token"),
        Control(
            "data_dependent_scale",
            _block(near.DataDependentScale),
            "keys and values scaled by the token",
        ),
        Control("head_mixing", _block(near.HeadMixing), "a softmax over heads after kv_b"),
    ]


CONTROLS: dict[str, Control] = {control.name: control for control in [*_models(), *_near_misses()]}
GENUINE = Control(
    "genuine_latent_block", _block(lookalikes.LatentBlock), "none: this one is latent attention"
)
