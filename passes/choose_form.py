"""Decide, site by site, which weights are multiplied together and which form serves long queries.

``auto`` asks the cost model (:mod:`mla_opt.cost_model`), which folds only where that makes decoding
faster without storing more. What was asked for and cannot be done is refused, and the site is kept
factored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mla_opt import cost_model
from mla_opt.errors import PassError, Refusal
from mla_opt.graphs.protocol import Graph
from mla_opt.matching.folding import FoldBlockedError, output_projection, query_projection
from mla_opt.pipeline import Pass, PassResult
from mla_opt.sites import Form, LatentAttentionSite, PrefillForm

AbsorbChoice = Literal["auto", "factored", "fold-q", "fold-o", "fold", "none"]

_UNFOLDED = "nothing between the attention and the projection but layout; or form 'factored'"


@dataclass(frozen=True)
class ChooseForm(Pass):
    """Set form and prefill form of every site.

    ``in_place`` when caches will be buffers, ``quantized`` when their rows will be of 8 bits;
    ``held`` when the operator will hold W_UK and W_UV of the sites that nothing folds, and has both
    forms then, whatever the cache.
    """

    name: ClassVar[str] = "choose_form"
    absorb: AbsorbChoice = "auto"
    prefill: PrefillForm = "auto"
    in_place: bool = False
    quantized: bool = False
    held: bool = False

    def requires(self, graph: Graph) -> None:
        """Every site has its geometry."""
        if any(site.geometry is None for site in graph.sites):
            raise PassError("a site has no geometry; run extract_weights first")

    def run(self, graph: Graph) -> PassResult:
        """Decide; nothing is rewritten."""
        refusals = [each for site in graph.sites for each in self._decide(graph, site)]
        notes = {f"{site.form}: {site.form_reason}" for site in graph.sites}
        if self.in_place or self.quantized or self.held:
            notes |= {f"prefill {site.prefill}: {site.prefill_reason}" for site in graph.sites}
        return PassResult(len(graph.sites), 0, tuple(refusals), tuple(sorted(notes)))

    def _decide(self, graph: Graph, site: LatentAttentionSite) -> list[Refusal]:
        site.form, site.form_reason = self._form(graph, site)
        refusals = _prepare_folds(graph, site)
        if self.absorb == "auto":  # nobody asked for the fold that is not possible
            refusals = []
        site.chooses = self.held and site.form == "factored"
        site.prefill, site.prefill_reason = self._prefill(graph, site)
        if site.form == "factored" and not self.held:
            site.notes.append("W_UK and W_UV are stored in the type of the queries")
        return refusals

    def _form(self, graph: Graph, site: LatentAttentionSite) -> tuple[Form, str]:
        if self.absorb != "auto":
            return self.absorb, "asked for"
        assert site.geometry is not None
        choice = cost_model.choose_form(
            site.geometry, dtype_bytes=graph.dtype(site.core.query).itemsize
        )
        if choice.form != "factored" and self.held:
            return "factored", f"{choice.reason}; but the operator holds the matrices as they are"
        if choice.form != "factored" and self._prefill(graph, site)[0] != "absorbed":
            return "factored", f"{choice.reason}; but long queries need the matrices as they are"
        return choice.form, choice.reason

    def _prefill(self, graph: Graph, site: LatentAttentionSite) -> tuple[PrefillForm, str]:
        if site.form == "none":
            return "expanded", "asked not to absorb"
        held = self.held and site.form == "factored"
        if self.in_place and not held:
            return "absorbed", "a static cache is attended to as it is, so prompts are absorbed"
        if self.quantized and not held:
            return "absorbed", "rows of 8 bits are attended to as they are, so prompts are absorbed"
        if site.form != "factored" and self.prefill != "absorbed":
            return "absorbed", "folded weights cannot be expanded again without storing them twice"
        if self.prefill != "auto":
            return self.prefill, "asked for"
        assert site.geometry is not None
        shape = graph.example_shape(site.core.query)
        single = shape is not None and shape[2] == 1
        choice = cost_model.choose_prefill(site.geometry, always_short=single)
        if held and choice.form == "auto" and site.only_new_rows:
            return "expanded", "no cache: a whole prompt is cheaper expanded"
        return choice.form, choice.reason


def _prepare_folds(graph: Graph, site: LatentAttentionSite) -> list[Refusal]:
    """Look for the projections to fold into; a site that has none is kept factored."""
    try:
        if site.form in ("fold-q", "fold"):
            site.query_projection = query_projection(graph, site)
        if site.form in ("fold-o", "fold"):
            site.output_projection = output_projection(graph, site)
    except FoldBlockedError as error:
        asked, site.form = site.form, "factored"
        site.query_projection = site.output_projection = None
        site.form_reason = f"{asked} is not possible: {error}"
        return [Refusal(site.name, "fold_blocked", str(error), error.labels(graph), _UNFOLDED)]
    return []
