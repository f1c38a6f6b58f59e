"""Tiny, structurally faithful models of every architecture in transformers with latent attention.

No two dimensions are equal, so that a mixed-up axis cannot go unnoticed. Nothing is downloaded: the
model code is transformers' own, the weights are seeded noise (`weights`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from tests.exports.weights import randomize

Config = dict[str, Any]

BASE: Config = {
    "vocab_size": 97,
    "hidden_size": 84,
    "intermediate_size": 68,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "kv_lora_rank": 48,
    "q_lora_rank": 52,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
MOE: Config = {
    "moe_intermediate_size": 36,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
FIRST_DENSE: Config = {"first_k_dense_replace": 1}
DENSE_THEN_SPARSE: Config = {"mlp_layer_types": ["dense", "sparse"]}
#: Sparse attention. With few indexer heads many scores are exactly 0, and every runtime breaks the
#: ties of top-k its own way.
INDEXER: Config = {"index_n_heads": 14, "index_head_dim": 16, "index_topk": 5}
LINEAR_THEN_FULL: Config = {"layer_types": ["linear_attention", "full_attention"]}
LINEAR: Config = {"linear_head_dim": 12, "linear_num_heads": 2, "linear_conv_kernel_dim": 4}

YARN: Config = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
#: The query scale steps every 8 positions, so that short tests see it change.
LLAMA4_SCALE: Config = {
    **YARN,
    "original_max_position_embeddings": 8,
    "llama_4_scaling_beta": 0.1,
}
SHARED_LATENT: Config = {
    "num_hidden_layers": 3,
    "mlp_layer_types": ["dense", "sparse", "dense"],
    "no_rope_layers": [1, 0, 1],
    "kv_source_layers": [0, 1, 0],
}


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture, or a variant of it that changes the attention graph.

    Attributes:
        name: The key in `FAMILIES`.
        model_type: The transformers model type.
        options: Config entries on top of `BASE`.
        attention: Attention implementations the model code supports.
        sites: Latent attentions in the model, that is, what a matcher should find.
        flat_cache: Whether the cache is nothing but tensors that grow along the sequence axis.
        model_class: Module and class, where no causal LM is registered; a bare decoder gets a head.
        notes: What makes its attention different.
    """

    name: str
    model_type: str
    options: Config
    attention: tuple[str, ...] = ("eager", "sdpa")
    sites: int = 2
    flat_cache: bool = True
    model_class: tuple[str, str] | None = None
    notes: str = ""

    def build(self, attention: str = "sdpa", dtype: str = "float32", **overrides: Any) -> Any:
        """The model in evaluation mode with its seeded weights."""
        config = self.config(**overrides)
        torch.manual_seed(0)
        model = self._construct(config, attention)
        _use_exportable_experts(model)
        return randomize(model).to(getattr(torch, dtype)).eval()

    def config(self, **overrides: Any) -> Any:
        """The transformers config."""
        options = {**BASE, **self.options, **overrides}
        if self.model_class is not None:
            return _load_class(self.model_class).config_class(**options)
        from transformers import AutoConfig

        return AutoConfig.for_model(self.model_type, **options)

    def _construct(self, config: Any, attention: str) -> Any:
        if self.model_class is not None:
            model_class = _load_class(self.model_class)
            if model_class.can_generate():
                return model_class._from_config(config, attn_implementation=attention)
            return _with_head(model_class, config, attention)
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def _with_head(text_class: Any, config: Any, attention: str) -> Any:
    """A causal LM over a text decoder that transformers brings only with a vision tower.

    It is a pretrained model that can generate, as transformers' exporter asks of what it exports.
    """
    from transformers import GenerationMixin
    from transformers.modeling_outputs import CausalLMOutputWithPast

    class TextForCausalLM(text_class.__base__, GenerationMixin):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model = text_class._from_config(config, attn_implementation=attention)
            self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)

        def forward(
            self,
            input_ids: Any = None,
            attention_mask: Any = None,
            position_ids: Any = None,
            past_key_values: Any = None,
            **options: Any,
        ) -> Any:
            """What a causal LM returns, as far as the harness and the exporters read it."""
            outputs = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                **options,
            )
            logits = self.lm_head(outputs.last_hidden_state)
            return CausalLMOutputWithPast(logits=logits, past_key_values=outputs.past_key_values)

    return TextForCausalLM(config)


def _load_class(path: tuple[str, str]) -> Any:
    import importlib

    return getattr(importlib.import_module(f"transformers.models.{path[0]}"), path[1])


def _use_exportable_experts(model: Any) -> None:
    """Batched matmuls over experts: neither exporter translates the default grouped matmul.

    A class can be told so only where its own module has the experts: the decoder, if not the LM.
    """
    for part in (model, model.model):
        if getattr(part, "_can_set_experts_implementation", lambda: False)():
            part.set_experts_implementation("batched_mm")


def _families() -> list[Family]:
    v3 = {**MOE, **FIRST_DENSE, "num_mtp_layers": 0}
    yarn = {**v3, "rope_parameters": YARN, "max_position_embeddings": 64}
    sparse = {**MOE, **DENSE_THEN_SPARSE}
    indexed = {**sparse, **INDEXER}
    kda = {**MOE, **DENSE_THEN_SPARSE, **LINEAR_THEN_FULL, "num_local_experts": 6}
    return [
        Family("deepseek_v2", "deepseek_v2", {**MOE, **FIRST_DENSE}, notes="complex-number rope"),
        Family(
            "deepseek_v2_noqlora",
            "deepseek_v2",
            {**MOE, **FIRST_DENSE, "q_lora_rank": None},
            notes="one q_proj",
        ),
        Family("deepseek_v3", "deepseek_v3", v3, notes="interleaved rope"),
        Family(
            "deepseek_v3_halves",
            "deepseek_v3",
            {**v3, "rope_interleave": False},
            notes="rope on halves",
        ),
        Family("deepseek_v3_yarn", "deepseek_v3", yarn, notes="YaRN scales the softmax"),
        Family(
            "deepseek_v32", "deepseek_v32", indexed, notes="sparse attention, a third cache tensor"
        ),
        Family("glm4_moe_lite", "glm4_moe_lite", sparse),
        Family(
            "glm_moe_dsa",
            "glm_moe_dsa",
            {**indexed, "indexer_types": ["full", "shared"]},
            notes="shared top-k",
        ),
        Family(
            "longcat_flash",
            "longcat_flash",
            _longcat(),
            notes="two attentions a layer; scaled latents",
        ),
        Family("minicpm3", "minicpm3", {"scale_emb": 2, "dim_model_base": 42}, notes="dense"),
        Family(
            "mistral4",
            "mistral4",
            {**v3, "rope_parameters": LLAMA4_SCALE, "max_position_embeddings": 32},
            model_class=("mistral4", "Mistral4ForCausalLM"),
            notes="query scaled by position",
        ),
        Family(
            "mistral_large4",
            "mistral_large4_text",
            {**indexed, "no_rope_layers": [1, 0]},
            model_class=("mistral_large4", "MistralLarge4TextModel"),
            notes="no query LoRA; the second layer has no rope",
        ),
        Family(
            "mistral_large4_shared",
            "mistral_large4_text",
            {**indexed, **SHARED_LATENT},
            sites=3,
            model_class=("mistral_large4", "MistralLarge4TextModel"),
            notes="the third layer reads the first's latent",
        ),
        Family("youtu", "youtu", {}, notes="dense"),
        Family("axk1", "axk1", sparse),
        Family(
            "axk2",
            "axk2",
            {**indexed, "gated_norm_rank": 6},
            notes="gated output, sparse attention",
        ),
        Family(
            "kimi_linear",
            "kimi_linear",
            {**kda, **LINEAR, "q_lora_rank": None},
            sites=1,
            flat_cache=False,
            notes="no rope; one linear-attention layer",
        ),
        Family(
            "bailing_hybrid",
            "bailing_hybrid",
            {**kda, "head_dim": 12},
            sites=1,
            flat_cache=False,
            notes="head gate; one linear-attention layer",
        ),
        Family("dots3_note", "dots3_note_text", _dots3(indexed), notes="norm on k_pe, head gate"),
        Family(
            "dots3_note_sliding",
            "dots3_note_text",
            _dots3_sliding(indexed),
            flat_cache=False,
            notes="the second layer is of other dimensions and attends a window",
        ),
        Family(
            "glm5_next",
            "glm5_next_text",
            _glm5(indexed),
            sites=1,
            flat_cache=False,
            model_class=("glm5_next", "Glm5NextTextModel"),
            notes="no k_pe at all; one linear-attention layer",
        ),
        Family(
            "hy_v4", "hy_v4", {**indexed, "hc_mult": 2}, attention=("eager",), notes="sinks, gate"
        ),
    ]


def _longcat() -> Config:
    return {
        "num_layers": 1,
        "num_hidden_layers": 2,
        "ffn_hidden_size": 68,
        "expert_ffn_hidden_size": 36,
        "head_dim": 8,
        "qk_head_dim": 32,
        "moe_topk": 2,
        "n_routed_experts": 5,
        "zero_expert_num": 2,
    }


def _dots3(indexed: Config) -> Config:
    return {
        **indexed,
        "head_dim": 32,
        "shared_experts_intermediate_size": 36,
        "use_sliding_window": False,
    }


def _dots3_sliding(indexed: Config) -> Config:
    window = {"head_dim": 28, "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 44}
    window |= {"kv_lora_rank": 40, "qk_nope_head_dim": 16, "v_head_dim": 12}
    layers = {"layer_types": ["indexed_attention", "sliding_attention"], "sliding_window": 6}
    sliding = {f"swa_{name}": value for name, value in window.items()}
    return {**_dots3(indexed), **layers, **sliding, "use_sliding_window": True}


def _glm5(indexed: Config) -> Config:
    layers = {
        "layer_types": ["linear_attention", "indexed_attention"],
        "indexer_types": ["full", "full"],
    }
    return {
        **indexed,
        **LINEAR,
        **layers,
        "qk_rope_head_dim": 0,
        "index_kpool": 2,
        "index_topk": 4,
        "hc_mult": 2,
    }


FAMILIES: dict[str, Family] = {family.name: family for family in _families()}
