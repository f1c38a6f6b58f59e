"""What ``mla_opt::MultiHeadLatentAttention`` version 1 takes, gives and means.

It is :mod:`LatentAttention <mla_opt.operator.contract>` between the two products of each head that
stand around it, ``W_UK`` and ``W_UV``: the weights come as the model stores them, and whether keys
and values are absorbed into queries and outputs, or expanded, is decided where it is computed.
Symbols as there; N and V are the dims of a head's key without rotary embedding and of its value.

| input | shape | |
|---|---|---|
| ``query`` | [B, H, S, N+R] | before absorption, the part without rotary embedding first |
| ``kv_b`` | see :mod:`mla_opt.operator.kv_b` | ``W_UK`` and ``W_UV`` of all heads |
| ``latent``, ``cache``, ``past_len`` | as ``LatentAttention`` | optional, as there |
| ``bias``, ``sink``, ``rope_cache`` | as ``LatentAttention`` | optional, as there |
| ``kv_b_scales``, ``kv_b_zero_points`` | see :mod:`mla_opt.operator.kv_b` | optional |
| ``kv_b_factors`` | [2, C] float32 | optional: of the columns of W_UK, and of those of W_UV^T |

| output | shape | |
|---|---|---|
| ``output`` | [B, H, S, V] | |
| ``new_cache``, ``new_rope_cache`` | as ``LatentAttention`` | |

With the rows ``[c_kv | k_pe]`` that ``LatentAttention`` attends to, head h computes

    softmax(scale * query @ [c_kv @ W_UK[h]^T | k_pe]^T + bias [, sink]) @ (c_kv @ W_UV[h])

under the same rules of what may be seen; a row that may attend to nothing gives zeros. Where there
are factors, column c of ``W_UK[h]`` is that of ``kv_b`` times ``kv_b_factors[0, c]``, and column c
of ``W_UV[h]^T`` that times ``kv_b_factors[1, c]``: as if ``c_kv`` were multiplied by them in front
of keys, and of values.

*Expanded* computes it as it stands. *Absorbed* computes the same as ``LatentAttention`` from the
query ``[query_nope @ W_UK[h] | query_rope]``, and multiplies its output by ``W_UV[h]``.

| attribute | type | |
|---|---|---|
| ``scale``, ``causal``, ``plugin_namespace``, ``plugin_version`` | | as ``LatentAttention`` |
| ``kv_lora_rank``, ``qk_nope_head_dim``, ``v_head_dim`` | int | C, N, V |
| ``bits``, ``block_size``, ``block_rows`` | int | see :class:`mla_opt.operator.kv_b.Storage` |
| ``form`` | string | ``absorbed``; ``expanded``, where S > 1; or ``auto``: what takes less time |

One query to many rows is absorbed by ``expanded``, too: nobody wants a step to expand its cache.
Every attribute is written on the node. Nodes of several signatures are named as those of
``LatentAttention`` are: ``MultiHeadLatentAttention``, ``MultiHeadLatentAttention_2`` and so on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from mla_opt.errors import InputError
from mla_opt.geometry import MlaGeometry
from mla_opt.operator.contract import DOMAIN, OUTPUTS, PLUGIN_NAMESPACE, PLUGIN_VERSION, Signature
from mla_opt.operator.contract import OP_TYPES as LATENT_OP_TYPES
from mla_opt.operator.kv_b import PLAIN, Storage

MULTI_HEAD_OP_TYPE = "MultiHeadLatentAttention"
MULTI_HEAD_OP_TYPES = (
    MULTI_HEAD_OP_TYPE,
    *(f"{MULTI_HEAD_OP_TYPE}_{number}" for number in range(2, len(LATENT_OP_TYPES) + 1)),
)

INPUTS = (
    "query",
    "kv_b",
    "latent",
    "cache",
    "past_len",
    "bias",
    "sink",
    "rope_cache",
    "kv_b_scales",
    "kv_b_zero_points",
    "kv_b_factors",
)
ATTRIBUTES = (
    "scale",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "v_head_dim",
    "causal",
    "bits",
    "block_size",
    "block_rows",
    "form",
    "plugin_namespace",
    "plugin_version",
)

Form = Literal["auto", "absorbed", "expanded"]

_ATTENTION = Signature()
_Value = TypeVar("_Value")


def is_multi_head(domain: str, op_type: str) -> bool:
    """Whether a node of this domain and type is the operator, by any of its names."""
    return domain == DOMAIN and op_type in MULTI_HEAD_OP_TYPES


@dataclass(frozen=True, slots=True)
class MultiHeadSignature:
    """Which optional inputs a node has, and what they mean: what its function body depends on.

    Attributes:
        attention: the signature of the ``LatentAttention`` that it contains.
        storage: how its weights are stored.
        form: of the computation.
        factors: whether the columns of its weights are multiplied by ``kv_b_factors``.
    """

    attention: Signature = _ATTENTION
    storage: Storage = PLAIN
    form: Form = "auto"
    factors: bool = False

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise InputError(f"{MULTI_HEAD_OP_TYPE}: form is {self.form!r}, not {get_args(Form)}")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that are present, in order."""
        present = {
            *self.attention.inputs,
            "kv_b",
            *(("kv_b_scales",) if self.storage.block_size else ()),
            *(("kv_b_zero_points",) if self.storage.zero_points != "none" else ()),
            *(("kv_b_factors",) if self.factors else ()),
        }
        return tuple(name for name in INPUTS if name in present)

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the inputs up to the last one present."""
        return INPUTS[: INPUTS.index(self.inputs[-1]) + 1]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs that are present, in order."""
        return OUTPUTS[: len(self.attention.outputs)]

    @property
    def overload(self) -> str:
        """Short name, different for every signature."""
        form = "" if self.form == "auto" else self.form
        factors = "factors" if self.factors else ""
        words = (self.attention.overload, self.storage.overload, factors, form)
        return "_".join(word for word in words if word)

    def arrange(self, values: Mapping[str, _Value]) -> list[_Value | None]:
        """Return the operands of a node: ``values`` in their slots, None in the gaps."""
        if set(values) != set(self.inputs):
            raise InputError(
                f"{MULTI_HEAD_OP_TYPE} ({self.overload}) takes {', '.join(self.inputs)};"
                f" it was given {', '.join(values) or 'nothing'}"
            )
        return [values.get(name) for name in self.slots]

    def node_attributes(self, scale: float, geometry: MlaGeometry) -> dict[str, float | int | str]:
        """Return every attribute of a node, as ``ATTRIBUTES`` names them."""
        return {
            "scale": float(scale),
            "kv_lora_rank": geometry.kv_lora_rank,
            "qk_nope_head_dim": geometry.qk_nope_head_dim,
            "v_head_dim": geometry.v_head_dim,
            "causal": int(self.attention.causal),
            "bits": self.storage.bits,
            "block_size": self.storage.block_size,
            "block_rows": self.storage.block_rows,
            "form": self.form,
            "plugin_namespace": PLUGIN_NAMESPACE,
            "plugin_version": PLUGIN_VERSION,
        }
