"""The matrices of one latent attention: as numbers, and as tensors of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from mla_opt.handles import Array, Value


@dataclass(frozen=True, slots=True)
class LatentWeights:
    """The per-head matrices of one latent attention, and where the query's dims go.

    With ``c`` a latent row of width C and ``k_pe`` its rotary part of width R, head ``h`` has
    ``key[nope_dims] = w_uk[h] @ c``, ``key[rope_dims] = k_pe`` (both times ``key_scale``, which is
    taken out) and ``value = c @ w_uv[h] + value_bias[h]``.

    Attributes:
        by_head: ``w_uk`` and the transposed ``w_uv`` of each head, ``[H, N + V, C]``.
        value_bias: ``[H, V]``, or ``None`` when it is zero.
        nope_dims: the N positions of a head's key and query that ``w_uk`` makes, in its order.
        rope_dims: the R positions that hold ``k_pe``, in its order.
        key_scale: constant factor that the original has on its keys; belongs to the scale.
        key_bias: ``[H, N + R]``, or ``None``; it drops out of the softmax.
    """

    by_head: Array
    value_bias: Array | None
    nope_dims: tuple[int, ...]
    rope_dims: tuple[int, ...]
    key_scale: float
    key_bias: Array | None = None

    @property
    def w_uk(self) -> Array:
        """``[H, N, C]``, a view."""
        return self.by_head[:, : len(self.nope_dims)]

    @property
    def w_uv(self) -> Array:
        """``[H, C, V]``, a view."""
        return self.by_head[:, len(self.nope_dims) :].swapaxes(1, 2)

    @property
    def rows(self) -> Array:
        """The rows of ``kv_b``, ``[H (N + V), C]``, a view."""
        return self.by_head.reshape(-1, self.by_head.shape[2])

    def kept(self, keep: Callable[[Array], Array]) -> LatentWeights:
        """The same with the matrices as ``keep`` returns them."""
        return replace(self, by_head=keep(self.by_head))


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """The matrices of a site as stored tensors: ``w_uk [H, N, C]``, ``w_uv [H, C, V]``."""

    w_uk: Value
    w_uv: Value
    value_bias: Value | None
