"""Which form a call takes where no kernel decides it by its own rates: the one of fewer products.

Absorbed, a query and a key take 2 C + R products of a head, and a query C (N + V); expanded, they
take N + R + V, and a key C (N + V).
"""

from __future__ import annotations

from mla_opt.operator.torch.multi_head.call import MultiHeadCall


def expands(call: MultiHeadCall, seen: int, least_seen: int | None = None) -> bool:
    """Whether a call is computed expanded.

    Args:
        call: the call.
        seen: rows that it would expand: T, or of a buffer those that are valid, where they are
            known.
        least_seen: rows that it attends to at least; absent: all of ``seen``.
    """
    queries = call.query.shape[2]
    if call.form != "auto":
        return call.form == "expanded" and queries > 1
    expansion = call.kv_lora_rank * (call.qk_nope_head_dim + call.v_head_dim)
    absorbed, expanded = _widths(call)
    pairs, least_pairs = queries * seen, queries * (seen if least_seen is None else least_seen)
    return least_pairs * absorbed + queries * expansion > pairs * expanded + seen * expansion


def _widths(call: MultiHeadCall) -> tuple[int, int]:
    """Products of a query and a key, absorbed and expanded."""
    made = call.qk_nope_head_dim + call.v_head_dim
    return 2 * call.kv_lora_rank + call.rope_dim, made + call.rope_dim
