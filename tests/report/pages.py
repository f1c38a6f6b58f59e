"""Pages, and what a browser or a person would read in them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any

from mla_opt.cost_model import Workload, choose_form, choose_prefill
from mla_opt.errors import Refusal
from mla_opt.geometry import MlaGeometry
from mla_opt.report import AttentionReport, InspectionReport
from mla_opt.report.page import PageData, page_data
from tests.report import examples

V3 = MlaGeometry(128, 128, 64, 128, 512, 1536, 7168)
#: Wide heads over a narrow latent, so that absorbing is never dearer; the graph tells no more.
NARROW = MlaGeometry(16, 256, 32, 256, 64, None, None)
#: Names that a page must show, and a browser must not obey.
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)>&\"'{{ 7 * 7 }}\u202e\u2028"
)


def deep(layers: int = 61, family: str = "expanded") -> InspectionReport:
    """A model of V3's sizes."""
    form, prefill = choose_form(V3, dtype_bytes=2), choose_prefill(V3)
    found = (
        AttentionReport(
            name=f"model.layers.{layer}.self_attn",
            matched=True,
            geometry=V3,
            cache_family=family,  # type: ignore[arg-type]
            nodes=(f"layers.{layer}/MatMul", f"layers.{layer}/Softmax"),
            dtype="bfloat16",
            form=form.form,
            form_reason=form.reason,
            prefill=prefill.form,
            prefill_reason=prefill.reason,
        )
        for layer in range(layers)
    )
    return InspectionReport(tuple(found), examples.model_file())


def mixed() -> InspectionReport:
    """Layers of several families, forms and types."""
    latent, cached = deep(2, "latent").attentions, deep(3, "expanded").attentions
    narrow = AttentionReport(
        "narrow", True, NARROW, "none", dtype="float32", form="fold", prefill="absorbed"
    )
    return InspectionReport((*latent, *cached[2:], narrow))


def hostile() -> PageData:
    """A page in which everything that a file can name is named by somebody who means ill."""
    refusal = Refusal(HOSTILE, "code", HOSTILE, (HOSTILE,), HOSTILE)
    found = replace(examples.inspection().attentions[0], name=HOSTILE, nodes=(HOSTILE,))
    file = replace(examples.model_file(), path=HOSTILE, producer=HOSTILE)
    inspection = InspectionReport(
        (found, AttentionReport(HOSTILE, False, None, "none", refusal)),
        file,
        notes=(HOSTILE,),
        operators=(examples.operator(0, name=HOSTILE, node=HOSTILE),),
    )
    broken: dict[str, object] = {
        "passed": False,
        "failures": [HOSTILE],
        "outputs": [{"name": HOSTILE, "problem": HOSTILE}, HOSTILE],
        "controls": [{"name": HOSTILE, "applicable": True, "reason": HOSTILE}],
        "scenarios": [{"name": HOSTILE, "calls": [HOSTILE], "error": HOSTILE}],
    }
    change = examples.change(0)
    assert change.before is not None
    port = replace(change.before, name=HOSTILE, dtype=HOSTILE, shape=(HOSTILE,))
    optimization = replace(
        examples.report(),
        verification=broken,
        notes=(HOSTILE,),
        interface_changes=(replace(change, before=port, why=HOSTILE),),
        sites=(replace(examples.site(0), name=HOSTILE, notes=(HOSTILE,)),),
    )
    return page_data(inspection, inspection, optimization, workload=Workload(1, 1, 4096))


@dataclass
class Page(HTMLParser):
    """A page as a browser takes it apart."""

    html: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)
    data: Any = None
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._inside = ""
        self.feed(self.html)
        self.close()

    @property
    def text(self) -> str:
        """What a person reads, in one line."""
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        kind = dict(attrs).get("type") or ""
        self._inside = f"{tag} {kind}".strip()

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside == "script application/json":
            self.data = json.loads(data)
        elif self._inside == "style":
            self.styles.append(data)
        else:
            self.words.append(data)
