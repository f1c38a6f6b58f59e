"""Read W_UK and W_UV of every site off its graph, and prove each site before anything changes.

The region between latent rows and keys and values is run on basis rows; see
:mod:`mla_opt.matching.extraction`. A site whose certificate does not hold is dropped and reported.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from mla_opt.emission.drafts import settle
from mla_opt.errors import MlaOptError, PassError, Refusal
from mla_opt.geometry import MlaGeometry
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Value
from mla_opt.matching.certificate import Certificate
from mla_opt.matching.extraction import extract
from mla_opt.matching.not_latent import NotLatentError
from mla_opt.matching.provers import Provers, provers_of
from mla_opt.matching.query_source import hidden_size, query_source_width
from mla_opt.pipeline import Pass, PassResult
from mla_opt.sites import LatentAttentionSite, LatentWeights

_NO_CONTENT = (
    "its weights have no content (meta device): the form was checked with made-up ones, there is no"
    " certificate, and W_UK and W_UV have no content either"
)


Outcome = Refusal | None
"""What is said against a site."""

_REFUSED = (NotLatentError, MlaOptError, ValueError, IndexError)
"""What reading or proving a site may raise."""


@dataclass(frozen=True)
class ExtractWeights(Pass):
    """Give every site its matrices, its geometry and its certificate."""

    name: ClassVar[str] = "extract_weights"

    def run(self, graph: Graph) -> PassResult:
        """Complete ``graph.sites``, and drop those that cannot be proved."""
        with provers_of(graph) as provers:
            refusals = [refusal for refusal in _refusals(graph, provers) if refusal is not None]
        matched = len(graph.sites)
        graph.sites[:] = [site for site in graph.sites if site.weights is not None]
        settle(graph)
        return PassResult(matched=matched, refusals=tuple(refusals))

    def ensures(self, graph: Graph) -> None:
        """Every site that is left has matrices and a geometry."""
        for site in graph.sites:
            if site.weights is None or site.geometry is None:
                raise PassError(f"{site.name} was kept without matrices")


def _refusals(graph: Graph, provers: Provers) -> Iterator[Outcome]:
    """What is said against each site, in their order: one is proved while the next is read."""
    begun: deque[Callable[[], Outcome]] = deque()
    for site in graph.sites:
        begun.append(_begun(graph, site, provers))
        if len(begun) > provers.count:  # no more matrices at a time than are worked on
            yield begun.popleft()()
    for end in begun:
        yield end()


def _begun(graph: Graph, site: LatentAttentionSite, provers: Provers) -> Callable[[], Outcome]:
    """Read the matrices of a site; what comes back waits for its proof, and completes it."""
    try:
        weights = site.weights = _extracted(graph, site)
    except _REFUSED as error:
        refusal = _refusal(graph, site, error)
        return lambda: refusal
    proof = provers.begin(site, weights)

    def end() -> Outcome:
        try:
            certificate = proof()
        except _REFUSED as error:
            return _refusal(graph, site, error)
        return _completed(graph, site, weights, certificate)

    return end


def _refusal(graph: Graph, site: LatentAttentionSite, error: Exception) -> Refusal:
    """Drop a site because of an error."""
    site.weights = None
    if isinstance(error, NotLatentError):
        return error.refusal(graph, site.name)
    if isinstance(error, MlaOptError):
        return Refusal(
            site.name,
            "region_not_closed",
            str(error),
            remedy="compute keys and values from the latent rows and stored tensors alone",
        )
    return Refusal(
        site.name,
        "region_not_closed",
        f"what its rows are made into is not of the shape that its graph says: {error}",
        remedy="export the model again",
    )


def _completed(
    graph: Graph, site: LatentAttentionSite, weights: LatentWeights, certificate: Certificate
) -> Outcome:
    """Give a site what was found, or drop it because of its certificate."""
    site.certificate_error = certificate.error
    if not certificate.holds:
        site.weights = None
        return Refusal(
            site.name,
            "certificate_failed",
            f"the original differs from the latent form by {certificate.error:.1e}, more than"
            f" rounding ({certificate.tolerance:.0e})",
            (graph.label(site.core.first), graph.label(site.core.last)),
            "export the model in a wider type, if rounding is what differs; else report this",
        )
    site.weights = weights.kept(graph.keep_aside)
    site.geometry = _geometry(graph, site, weights)
    if not graph.has_content():
        site.certificate_error = float("nan")
        site.notes.append(_NO_CONTENT)
    return None


def _extracted(graph: Graph, site: LatentAttentionSite) -> LatentWeights:
    """The matrices; where heads hold ``k_pe`` in ways of their own, it is part of the latent."""
    try:
        return extract(graph, site)
    except NotLatentError as error:
        if error.code != "rope_mixed" or _is_read_by_others(graph, site):
            raise
    site.join_rows()
    return extract(graph, site)


def _is_read_by_others(graph: Graph, site: LatentAttentionSite) -> bool:
    """Whether other attentions read rows or caches of this one, and so its ``k_pe``."""
    own = _tensors_of(site)
    return any(own & _tensors_of(other) for other in graph.sites if other is not site)


def _tensors_of(site: LatentAttentionSite) -> set[Value]:
    caches = {part.past for part in (*(site.expanded or ()), *site.held)}
    return caches if site.rope is None else {*caches, site.rope}


def _geometry(graph: Graph, site: LatentAttentionSite, weights: LatentWeights) -> MlaGeometry:
    heads, nope, latent = weights.w_uk.shape
    source = query_source_width(graph, site.core.query)
    hidden = hidden_size(graph, site)
    return MlaGeometry(
        num_heads=heads,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=len(weights.rope_dims),
        v_head_dim=weights.w_uv.shape[2],
        kv_lora_rank=latent,
        q_lora_rank=None if source is None or source == hidden else source,
        hidden_size=hidden,
    )
