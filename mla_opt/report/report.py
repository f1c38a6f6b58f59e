"""What one optimization found, did, measured and wrote. Frozen, and JSON both ways.

The JSON is versioned: ``schema_version`` grows whenever a field is added, removed or changes its
meaning, and ``report.schema.json`` beside this file describes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mla_opt.errors import Refusal
from mla_opt.geometry import MlaGeometry
from mla_opt.report.plain import from_plain, to_plain
from mla_opt.sites import CacheFamily, CacheLayout, Form, PrefillForm
from mla_opt.version import tool_version

REPORT_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One model on disk.

    A PyTorch program imports no opsets and has the IR version 0.

    ``sha256`` and ``bytes`` cover the model file followed by its external data files in the order
    of their names, so for a model without external data it is what ``sha256sum`` prints.
    """

    path: str
    sha256: str
    bytes: int
    opset_imports: Mapping[str, int]
    ir_version: int
    producer: str
    external_data: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StepCost:
    """Operations and bytes of one decode step of one attention, divided by its new tokens.

    Projections from the query latent to the output are included. From the cost model, not measured.
    """

    flops: float
    bytes: float


@dataclass(frozen=True, slots=True)
class SiteReport:
    """One attention that was rewritten.

    ``form`` and ``prefill`` come with the sentence that says why. ``prefill_crossover`` is the
    number of new tokens above which expanding is cheaper, ``None`` when it never is. Cache figures
    are bytes per token of this attention; ``decode_*`` are at ``decode_context`` tokens of context.
    ``certificate_error`` is the largest deviation on random rows, relative to the largest value.
    """

    name: str
    geometry: MlaGeometry
    dtype: str
    form: Form
    form_reason: str
    prefill: PrefillForm
    prefill_reason: str
    prefill_crossover: float | None
    cache_family: CacheFamily
    cache_layout_before: CacheLayout
    cache_layout_after: CacheLayout
    cache_bytes_per_token_before: int
    cache_bytes_per_token_after: int
    weight_bytes_before: int
    weight_bytes_after: int
    decode_context: int
    decode_before: StepCost
    decode_after: StepCost
    certificate_error: float | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PassReport:
    """One pass: how many places it recognised and changed, and the seconds it took."""

    name: str
    matched: int
    rewritten: int
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PortSpec:
    """One input or output; ``shape`` holds numbers, symbolic names, and ``None`` for unknown."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True, slots=True)
class InterfaceChange:
    """An input or output that was changed (both sides), removed (``after`` None) or added."""

    kind: Literal["input", "output"]
    before: PortSpec | None
    after: PortSpec | None
    why: str


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """Bytes of all weights of a model as they are stored, each tensor once."""

    before: int
    after: int


@dataclass(frozen=True, slots=True)
class OptimizationReport:
    """One run of ``optimize``: what went in, what came out, and everything decided on the way.

    ``stored`` counts what the models hold, where ``weight_bytes_*`` of a site count its matrices in
    the type of its activations. ``input`` is ``None`` when the model did not come from a file,
    ``output`` when nothing was written. ``verification`` is the parity report as plain JSON,
    ``None`` when it did not run.
    """

    tool_version: str = field(default_factory=tool_version)
    input: ModelFile | None = None
    output: ModelFile | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    sites: tuple[SiteReport, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    passes: tuple[PassReport, ...] = ()
    interface_changes: tuple[InterfaceChange, ...] = ()
    verification: Mapping[str, object] | None = None
    notes: tuple[str, ...] = ()
    stored: StoredBytes | None = None
    schema_version: int = REPORT_SCHEMA_VERSION

    def to_json(self) -> str:
        """Return the report as indented JSON, ending in a newline."""
        return json.dumps(to_plain(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> OptimizationReport:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: not JSON, of another schema version, or a field that does not fit.
        """
        data = json.loads(text)
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != REPORT_SCHEMA_VERSION:
            raise ValueError(f"report schema version {version}, expected {REPORT_SCHEMA_VERSION}")
        return from_plain(cls, data)
