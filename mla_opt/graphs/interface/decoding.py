"""What generating asks of an interface: where ids go in and logits come out, what can be padded."""

from __future__ import annotations

from collections.abc import Container

from mla_opt.errors import InputError
from mla_opt.graphs.interface.dims import Port
from mla_opt.graphs.interface.interface import ModelInterface


def token_port(interface: ModelInterface, label: str, known: Container[str | None] = ()) -> Port:
    """The input for token ids of a model that can generate; ``label`` is how messages call it.

    ``known`` are inputs of no role that the caller feeds.

    Raises:
        InputError: it takes no token ids, keeps no cache, or has inputs of unknown meaning.
    """
    if interface.token_ids is None:
        raise InputError(f"{label}: has no input for token ids, so it cannot generate")
    if not interface.states:
        raise InputError(
            f"{label}: keeps no cache, so each token would take the whole text again; export it"
            " with its cache as inputs and outputs"
        )
    unknown = [port.name for port in interface.others if port.name not in known]
    if unknown:
        raise InputError(f"{label}: nobody knows what to feed its inputs {', '.join(unknown)}")
    return interface.token_ids


def logits_port(interface: ModelInterface, label: str) -> Port:
    """The output of that name, else the only other one, else the one as wide as the vocabulary.

    Raises:
        InputError: none or several could be it.
    """
    outputs = [port for port in interface.outputs if port.name not in interface.state_outputs]
    named = [port for port in outputs if port.name == "logits"]
    wide = [p for p in outputs if p.sizes and p.sizes[-1] == interface.vocabulary is not None]
    for candidates in (named, outputs, wide):
        if len(candidates) == 1:
            return candidates[0]
    names = ", ".join(port.name for port in outputs) or "none"
    raise InputError(f"{label}: which output holds the logits cannot be told; it has {names}")


def vocabulary_of(interface: ModelInterface, logits: Port) -> int | None:
    """Number of token ids, if it is known."""
    width = logits.sizes[-1] if logits.sizes else None
    return interface.vocabulary or (width if isinstance(width, int) else None)


def can_pad(interface: ModelInterface) -> bool:
    """Whether rows of one batch may differ in length.

    That takes a mask, and positions of each row's own. What a recurrent state has read it cannot
    forget, padding included.
    """
    recurrent = any(state.kind == "recurrent" for state in interface.states)
    positions = interface.positions
    per_row = bool(positions) and all(p.axis_of("batch") is not None for p in positions)
    return interface.attention_mask is not None and per_row and not recurrent
