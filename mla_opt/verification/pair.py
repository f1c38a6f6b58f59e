"""The two models that are compared: how each is driven, and what both leave open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mla_opt.errors import InputError
from mla_opt.graphs.interface.interface import Limits, ModelInterface, State
from mla_opt.verification.alignment import Aligner, joined_name
from mla_opt.verification.graph_facts import (
    LENGTHS,
    has_branches,
    lengths,
    reached,
    with_fused,
)
from mla_opt.verification.interface_map import METADATA_KEY, InterfaceMap, check_interfaces
from mla_opt.verification.oracle import (
    Driver,
    optimized_driver,
    original_driver,
)
from mla_opt.verification.parity import Tolerance
from mla_opt.verification.precision import (
    DEFAULT_WEIGHT_BYTES,
    ROUNDED_TYPES,
    tolerance_for,
    weight_bytes,
)
from mla_opt.verification.running import Runnable
from mla_opt.verification.scenarios import Room, Scenario
from mla_opt.verification.site_records import SiteRecord, read_sites

#: Query length of a long prompt, where the model says none that could be tried.
UNTOLD_QUERY = 512
#: Rows of the long past where the graph names no length, and what it may take at most.
LEAST_LONG_PAST = 300
MOST_PAST_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Pair:
    """Both models, how to drive each, and how they correspond."""

    original: Runnable
    optimized: Runnable
    before: Driver
    after: Driver
    aligner: Aligner
    sites: tuple[SiteRecord, ...]
    prompts_only: bool

    @classmethod
    def of(cls, original: Runnable, optimized: Runnable) -> Pair:
        """Look at both. Raises `InputError` where they do not belong together."""
        changes = InterfaceMap.of(optimized.model)
        before = original_driver(original.model, changes)
        after = optimized_driver(optimized.model, changes)
        check_interfaces(before.interface, after.interface, changes)
        aligner = Aligner(before.interface, after.interface, changes)
        sites = with_fused(optimized.model, read_sites(optimized.model))
        past = [state.input.name for state in after.interface.states]
        told = reached(optimized.model, past) - after.interface.state_outputs
        prompts_only = changes.prompts_only and not told
        _check_past(before.interface, after.interface)
        _check_capacity(after)
        return cls(original, optimized, before, after, aligner, sites, prompts_only)

    def twins(self) -> Pair:
        """Both without roundings of activations; these themselves where there are none."""
        wide = self.original.narrow
        before = self.original.twin(wide)
        after = self.optimized.twin(wide, rows=True)
        same = before is self.original and after is self.optimized
        return self if same else Pair.of(before, after)

    def room(self) -> Room:
        """What both models leave open."""
        return Room(
            limits=_merged(self.before.interface.limits(), self.after.interface.limits()),
            stateful=bool(self.before.interface.states) and not self.prompts_only,
            padded=self.before.interface.attention_mask is not None,
            capacity=self.after.capacity,
            long_query=self._long_query(),
            long_past=self._long_past(),
            can_make_up_past=self.aligner.can_share_a_past(),
        )

    def tolerance(self, noise: dict[str, float]) -> Tolerance:
        """The tolerance of each output: a wider one only where a rounded cache reaches it."""
        before, after = self.before.interface, self.after.interface
        limits = tolerance_for(self.original.model, after, noise)
        kept = {state.input.dtype for state in before.states}
        rounded = [s for s in after.states if s.input.dtype not in kept and _is_rounded(s)]
        names = reached(self.optimized.model, [state.input.name for state in rounded])
        joined = {
            joined_name(change)
            for change in self.aligner.changes.states
            if names.intersection(change.optimized.outputs)
        }
        plain = Tolerance.for_bytes(weight_bytes(self.original.model), noise)
        return limits.only_for(names | joined, plain)

    def _long_query(self) -> int | None:
        """A query length that takes the expanded branch: what the model says, as far as it may."""
        hints = [s.prefill_threshold for s in self.sites if s.prefill_threshold is not None]
        trusted = [hint for hint in hints if hint < LENGTHS.stop]
        if trusted and len(trusted) == len(hints):
            return max(trusted)
        return UNTOLD_QUERY if hints or has_branches(self.optimized.model) else None

    def _long_past(self) -> int | None:
        """More rows of past than any length that the optimized graph could compare with."""
        row = sum(_row_bytes(state) for state in self.before.interface.states)
        most = MOST_PAST_BYTES // max(row, 1)
        longest = max(lengths(self.optimized.model), default=0)
        wanted = max(longest, LEAST_LONG_PAST) + 1
        return wanted if wanted <= most else (most if most > LEAST_LONG_PAST else None)


def _is_rounded(state: State) -> bool:
    return state.input.dtype in ROUNDED_TYPES


def _row_bytes(state: State) -> int:
    """Bytes that one token takes in a state."""
    sizes = [size for size in state.input.sizes if isinstance(size, int)]
    kind = state.input.dtype
    return math.prod(sizes) * (DEFAULT_WEIGHT_BYTES if kind is None else int(kind.itemsize))


def _check_past(original: ModelInterface, optimized: ModelInterface) -> None:
    """A past of any length must not have become one of a fixed length.

    Raises:
        InputError: it has.
    """
    before, after = original.limits().past_len, optimized.limits().past_len
    if original.states and before is None and after is not None and optimized.states:
        raise InputError(
            f"the optimized model takes a past of {after} tokens only, the original one of any"
            " length; verify an optimized model against the file it was made from"
        )


def _check_capacity(driver: Driver) -> None:
    """How many rows a buffer has is what the graph declares.

    Raises:
        InputError: the metadata says another number.
    """
    for state in driver.interface.states:
        if driver.capacity is not None and state.kind == "buffer" and state.growth_axis is not None:
            rows = state.input.sizes[state.growth_axis]
            if rows != driver.capacity:
                raise InputError(
                    f"{METADATA_KEY} says that buffers have {driver.capacity} rows, and input"
                    f" {state.input.name!r} has {rows}; verify the file as mla-opt wrote it"
                )


def check_decodes(models: Pair, scenarios: Sequence[Scenario]) -> None:
    """Something must run on a past, unless the graph has none.

    Raises:
        InputError: nothing would.
    """
    if not models.room().stateful or models.before.interface.limits().past_len == 0:
        return
    if not any(scenario.initial_past or len(scenario.calls) > 1 for scenario in scenarios):
        raise InputError(
            "the sizes that the models fix leave no room for a decode step, so nothing would be"
            " proved of decoding; re-export with dynamic dimensions"
        )


def _merged(first: Limits, second: Limits) -> Limits:
    """The sizes that either file fixes; where they disagree, a run will fail and say so."""
    pairs = (
        (getattr(first, name), getattr(second, name))
        for name in ("batch", "query_len", "past_len", "total_len")
    )
    return Limits(*(b if a is None else a for a, b in pairs))
