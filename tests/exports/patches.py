"""The smallest changes without which a model does not export; each is undone on exit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch


@contextlib.contextmanager
def replaced(owner: Any, attribute: str, value: Any) -> Iterator[None]:
    """Set an attribute for the length of a block."""
    original = getattr(owner, attribute)
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        setattr(owner, attribute, original)


def complex_unsqueeze() -> contextlib.AbstractContextManager[None]:
    """DeepSeek-V2 rotates complex numbers; the ONNX exporter has no `unsqueeze` for them.

    Unsqueeze the two parts instead, as transformers' own exporter does.
    """
    original = torch.Tensor.unsqueeze

    def unsqueeze(self: torch.Tensor, dim: int) -> torch.Tensor:
        if torch.is_complex(self):
            return torch.complex(original(self.real, dim), original(self.imag, dim))
        return original(self, dim)

    return replaced(torch.Tensor, "unsqueeze", unsqueeze)


def dense_longcat_experts() -> contextlib.AbstractContextManager[None]:
    """LongCat loops over the experts that were hit, which depends on data.

    Compute all of them instead, and weight by zero what was not chosen.
    """
    from transformers.models.longcat_flash import modeling_longcat_flash as longcat

    return replaced(longcat.LongcatFlashExperts, "forward", _all_experts)


def _all_experts(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Sum of weight × expert(hidden); experts past `num_routed_experts` are the identity."""
    experts = torch.arange(self.total_experts, device=top_k_index.device)
    chosen = (top_k_index[..., None] == experts).to(top_k_weights.dtype)
    weight = (chosen * top_k_weights[..., None]).sum(1)
    routed = self.num_routed_experts
    both = torch.einsum("th,eih->tei", hidden_states, self.gate_up_proj[:routed])
    gate, up = both.chunk(2, dim=-1)
    outputs = torch.einsum("tei,ehi->teh", self.act_fn(gate) * up, self.down_proj)
    mixed = (outputs * weight[:, :routed, None]).sum(1)
    whole = mixed + hidden_states * weight[:, routed:].sum(-1, keepdim=True)
    return whole.to(hidden_states.dtype)


#: What to enter, by `config.model_type`.
PATCHES: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "deepseek_v2": complex_unsqueeze,
    "longcat_flash": dense_longcat_experts,
}


def patches_for(model_type: str) -> contextlib.AbstractContextManager[None]:
    """The patches a model type needs, or nothing."""
    return PATCHES.get(model_type, contextlib.nullcontext)()
