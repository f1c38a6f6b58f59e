"""What an optimized model says of its rewritten sites, under ``mla_opt.sites``.

The negative controls break a model at the values named here; verification reads from here how
long a prompt must be to take the expanded branch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.verification.json_fields import Fields, objects, parse

METADATA_KEY = "mla_opt.sites"


@dataclass(frozen=True, slots=True)
class SiteRecord:
    """One rewritten attention.

    Attributes:
        query: name of the absorbed query, ``[B, H, S, C + R]``; where the operator holds its
            weights, of the query before, ``[B, H, S, N + R]``.
        w_uk: name of the initializer ``[H, N, C]``; ``None`` where it is folded into another.
        kv_b: name of the initializer of the weights that an operator holds, and of those that go
            with it; ``None`` where there is no such operator.
        num_heads, qk_nope_head_dim: H and N, where there is one.
        scale: factor on the scores.
        prefill_threshold: query length from which on the expanded branch is certain to run, where
            the operators run by their function bodies.
    """

    name: str
    query: str
    w_uk: str | None
    scale: float
    kv_lora_rank: int
    qk_rope_head_dim: int
    w_uv: str | None = None
    prefill_threshold: int | None = None
    kv_b: str | None = None
    kv_b_scales: str | None = None
    kv_b_zero_points: str | None = None
    kv_b_factors: str | None = None
    num_heads: int | None = None
    qk_nope_head_dim: int | None = None

    @property
    def rope_start(self) -> int:
        """Dims of the query before its rotary part."""
        return self.kv_lora_rank if self.qk_nope_head_dim is None else self.qk_nope_head_dim

    @property
    def held(self) -> tuple[str, ...]:
        """Names of the tensors that an operator holds."""
        names = (self.kv_b, self.kv_b_scales, self.kv_b_zero_points, self.kv_b_factors)
        return tuple(name for name in names if name is not None)

    @property
    def default_scale(self) -> float:
        """The scale that the operator would have if none were given, ``1 / sqrt(C + R)``."""
        return 1 / math.sqrt(self.kv_lora_rank + self.qk_rope_head_dim)

    def as_dict(self) -> dict[str, object]:
        """Return the fields for JSON."""
        return {field: getattr(self, field) for field in self.__slots__}

    @classmethod
    def of(cls, fields: Fields) -> SiteRecord:
        """Read one entry."""
        return cls(
            name=fields.text("name"),
            query=fields.text("query"),
            w_uk=fields.optional_text("w_uk"),
            scale=fields.number("scale"),
            kv_lora_rank=fields.count("kv_lora_rank", 1),
            qk_rope_head_dim=fields.count("qk_rope_head_dim"),
            w_uv=fields.optional_text("w_uv"),
            prefill_threshold=fields.optional_count("prefill_threshold", 1),
            kv_b=fields.optional_text("kv_b"),
            kv_b_scales=fields.optional_text("kv_b_scales"),
            kv_b_zero_points=fields.optional_text("kv_b_zero_points"),
            kv_b_factors=fields.optional_text("kv_b_factors"),
            num_heads=fields.optional_count("num_heads", 1),
            qk_nope_head_dim=fields.optional_count("qk_nope_head_dim"),
        )


def read_sites(model: ir.Model) -> tuple[SiteRecord, ...]:
    """Read the sites of ``model``; none where it has no such metadata.

    Raises `InputError` naming the field that is wrong.
    """
    return parse_sites(model.metadata_props)


def parse_sites(metadata: Mapping[str, str]) -> tuple[SiteRecord, ...]:
    """Read the sites of a model's metadata. Raises `InputError` as `read_sites`."""
    text = metadata.get(METADATA_KEY)
    if text is None:
        return ()
    content = parse(text, METADATA_KEY)
    if not isinstance(content, list):
        raise InputError(f"{METADATA_KEY} must be a list of sites")
    return tuple(SiteRecord.of(entry) for entry in objects(content, METADATA_KEY))


def sites_to_json(sites: tuple[SiteRecord, ...]) -> str:
    """Return ``sites`` as JSON that `read_sites` reads."""
    return json.dumps([site.as_dict() for site in sites], sort_keys=True)
