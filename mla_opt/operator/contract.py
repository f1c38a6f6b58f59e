"""What ``mla_opt::LatentAttention`` version 1 takes, gives and means.

B sequences, H query heads, S query rows, L new latent rows (normally S), M cache rows, T rows seen
(at least 1), C = ``kv_lora_rank``, R rotary dims (0: no rotary part). A *latent row* is
``[c_kv | k_pe]``, ``C + R`` wide.

| input | shape | |
|---|---|---|
| ``query`` | [B, H, S, C+R] | absorbed query, ``c_kv`` part first |
| ``latent`` | [B, 1, L, C+R] | optional; new rows. Absent: every row is already in ``cache`` |
| ``cache`` | [B, 1, M, C+R] | optional; [B, 1, M, C] when ``rope_cache`` is given; see *even* |
| ``past_len`` | [B] int32 | optional; valid rows of each sequence: ``cache`` is a buffer |
| ``bias`` | to [B, H, S, T] | optional; broadcasts, rank 1 to 4; additive, or boolean: may attend |
| ``sink`` | [H] | optional; one more logit per head, whose probability is dropped |
| ``rope_cache`` | [B, 1, M, R] | optional, R >= 1; the ``k_pe`` part of a *split* cache |

| output | shape | |
|---|---|---|
| ``output`` | [B, H, S, C] | |
| ``new_cache`` | as ``cache``, or M+L rows | only when both ``cache`` and ``latent`` are given |
| ``new_rope_cache`` | as ``rope_cache``, or M+L rows | likewise, and only when split |

At least one of ``latent`` and ``cache`` is given; ``past_len`` and ``rope_cache`` need ``cache``.

*Growing* (no ``past_len``): the rows are ``cache`` then ``latent``, T = M + L (either may be
absent), all valid; the new caches are the longer ones.

*In place* (``past_len``): the new rows are written at ``past_len[b] .. past_len[b] + L`` of the
buffer, ``past_len[b] + L <= M``, T = M, and the valid rows are those before ``past_len[b] + L``.
The new caches have the buffer's shape and may share its memory. Without ``latent``, L = 0:
``past_len[b]`` counts the rows that another attention has already written. Rows that are not valid
take no part, but must be finite.

*Even* (both caches are [B, 1, M, (C+R)/2], which is not C): they hold the first and the second half
of each row, wherever in it c_kv ends; C+R is even, and R may be 0.

*Narrow* (the caches are float16 or bfloat16, everything else is float32): new rows are rounded to
the caches' type, and what the queries attend to are the rounded rows.

*Quantized* (``cache`` is int8 or float8e4m3fn, ``rope_cache`` bfloat16, everything else float32):
a cache in two tensors, also where R is 0. ``cache`` holds codes, ``rope_cache [B, 1, M, W]`` their
scales behind ``k_pe``; see :mod:`mla_opt.operator.quantized_rows`. New rows are quantized, and what
the queries attend to is what the codes stand for.

``output = softmax(scale * query @ rows^T + bias [, sink]) @ c_kv``, over the columns that are
valid, that a boolean bias allows and, when ``causal`` is 1, that query row i may see: those at or
before ``valid - S + i`` (aligned bottom right; per sequence when in place). A query row that may
attend to nothing, or only to columns of additive bias -inf, gives zeros. A finite bias, however
negative, is an ordinary number.

| attribute | type | |
|---|---|---|
| ``scale`` | float | of the scores; never derived from C + R |
| ``kv_lora_rank`` | int | C |
| ``causal`` | int | 0 or 1 |
| ``plugin_namespace``, ``plugin_version`` | string | how TensorRT finds a plugin |

Every attribute is written on the node: a default that only a function body knows breaks kernels.

In a file, the body of a signature is found by the operator's name alone: ONNX Runtime before 1.27
knows no overloads of functions and takes one body for all of a name. So where the nodes of a model
have several signatures, the most frequent is called ``LatentAttention`` and the others
``LatentAttention_2`` and so on (``OP_TYPES``). The names mean the same, and every kernel library
registers them all: what a node computes is told by the inputs that it has, never by its name.
Making one signature of them would not do: rows that another attention has written, or a cache in
two tensors, can be brought into the form of the others only by copying the cache in every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from mla_opt.errors import InputError

DOMAIN = "mla_opt"
OP_TYPE = "LatentAttention"
OP_TYPES = (OP_TYPE, *(f"{OP_TYPE}_{number}" for number in range(2, 9)))
VERSION = 1

INPUTS = ("query", "latent", "cache", "past_len", "bias", "sink", "rope_cache")
OUTPUTS = ("output", "new_cache", "new_rope_cache")
ATTRIBUTES = ("scale", "kv_lora_rank", "causal", "plugin_namespace", "plugin_version")

PLUGIN_NAMESPACE = "mla_opt"
PLUGIN_VERSION = "1"


def is_operator(domain: str, op_type: str) -> bool:
    """Whether a node of this domain and type is the operator, by any of its names."""
    return domain == DOMAIN and op_type in OP_TYPES


BiasKind = Literal["none", "additive", "boolean"]
CodesKind = Literal["none", "int8", "float8_e4m3fn"]

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Signature:
    """Which optional inputs a node has, and what they mean: what its function body depends on."""

    has_latent: bool = True
    has_cache: bool = False
    in_place: bool = False
    split: bool = False
    bias: BiasKind = "none"
    sink: bool = False
    causal: bool = False
    narrow: bool = False
    codes: CodesKind = "none"
    even: bool = False

    def __post_init__(self) -> None:
        if self.bias not in get_args(BiasKind):
            raise InputError(f"{OP_TYPE}: bias is {self.bias!r}, not one of {get_args(BiasKind)}")
        if not (self.has_latent or self.has_cache):
            raise InputError(f"{OP_TYPE}: neither latent nor cache is given, so there are no keys")
        if self.in_place and not self.has_cache:
            raise InputError(f"{OP_TYPE}: past_len is given without the cache it counts rows of")
        if self.split and not self.has_cache:
            raise InputError(f"{OP_TYPE}: rope_cache is given without cache, its other half")
        if self.narrow and not self.has_cache:
            raise InputError(f"{OP_TYPE}: no cache is given whose type could be a narrower one")
        if self.even and not self.split:
            raise InputError(f"{OP_TYPE}: rope_cache, which holds the second halves, is not given")
        self._check_codes()

    def _check_codes(self) -> None:
        if self.codes not in get_args(CodesKind):
            raise InputError(f"{OP_TYPE}: codes are {self.codes!r}, not {get_args(CodesKind)}")
        if self.codes != "none" and self.even:
            raise InputError(f"{OP_TYPE}: rows of 8 bits have no halves")
        if self.codes != "none" and (self.narrow or not self.split):
            raise InputError(
                f"{OP_TYPE}: a cache of 8 bits needs rope_cache, which holds its scales"
            )

    @property
    def writes_cache(self) -> bool:
        """Whether there are new rows and a cache to put them in."""
        return self.has_latent and self.has_cache

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that are present, in order."""
        present = {
            "query": True,
            "latent": self.has_latent,
            "cache": self.has_cache,
            "past_len": self.in_place,
            "bias": self.bias != "none",
            "sink": self.sink,
            "rope_cache": self.split,
        }
        return tuple(name for name in INPUTS if present[name])

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the inputs up to the last one present: what a node and its function list.

        No further ones, because TensorRT inlines a function only where the node gives all its
        inputs. Where one in between is absent (see ``has_gaps``), it refuses the function.
        """
        return INPUTS[: INPUTS.index(self.inputs[-1]) + 1]

    @property
    def has_gaps(self) -> bool:
        """Whether an absent input comes before a present one."""
        return self.slots != self.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs that are present, in order; always the first few of all three."""
        return OUTPUTS[: 1 + self.writes_cache + (self.writes_cache and self.split)]

    @property
    def overload(self) -> str:
        """Short name, different for every signature, such as ``latent_split_boolean``."""
        parts = (
            (self.has_latent, "latent"),
            (self.has_cache, "even" if self.even else "split" if self.split else "cache"),
            (self.in_place, "in_place"),
            (self.bias != "none", self.bias),
            (self.sink, "sink"),
            (self.causal, "causal"),
            (self.narrow, "narrow"),
            (self.codes != "none", self.codes),
        )
        return "_".join(word for present, word in parts if present)

    def arrange(self, values: Mapping[str, _Value]) -> list[_Value | None]:
        """Return the operands of a node: ``values`` in their slots, None in the gaps."""
        if set(values) != set(self.inputs):
            raise InputError(
                f"{OP_TYPE} ({self.overload}) takes {', '.join(self.inputs)}; "
                f"it was given {', '.join(values) or 'nothing'}"
            )
        return [values.get(name) for name in self.slots]

    def node_attributes(self, scale: float, kv_lora_rank: int) -> dict[str, float | int | str]:
        """Return every attribute of a node, as ``ATTRIBUTES`` names them."""
        return {
            "scale": float(scale),
            "kv_lora_rank": int(kv_lora_rank),
            "causal": int(self.causal),
            "plugin_namespace": PLUGIN_NAMESPACE,
            "plugin_version": PLUGIN_VERSION,
        }
