from __future__ import annotations

import pytest

from mla_opt.errors import InputError, PassError
from mla_opt.matching import provers
from mla_opt.passes import extract_weights
from mla_opt.passes.extract_weights import ExtractWeights
from tests.graphs.latent_block import Block
from tests.passes.harness import FIND, graph_of, lines, run


def test_completes_sites_and_changes_no_node():
    graph = graph_of(Block(layers=2))
    run(graph, *FIND)
    before = lines(graph.model)
    (result,) = run(graph, "extract_weights")
    assert lines(graph.model) == before
    assert (result.matched, result.refusals) == (2, ())
    for site in graph.sites:
        assert site.weights.w_uk.shape == (3, 8, 12)
        assert site.weights.w_uv.shape == (3, 12, 6)
        assert 0 < site.certificate_error < 2e-5
        assert (site.geometry.hidden_size, site.geometry.q_lora_rank) == (20, 14)
    first, second = (site.weights.w_uk for site in graph.sites)
    assert abs(first - second).max() > 0.1


def test_drops_what_cannot_be_proved():
    """The tokens of the values come in reverse, in the second layer only."""

    def backwards(tape, value):
        if tape.layer != 1:
            return value
        return tape("Slice", value, tape.ints(-1), tape.ints(-999), tape.ints(2), tape.ints(-1))

    graph = graph_of(Block(layers=2, cache="none", bias=None, edits={"values": backwards}))
    find, result = run(graph, *FIND, "extract_weights")
    assert [site.name for site in graph.sites] == ["layers.0.self_attn"]
    (refusal,) = (*find.refusals, *result.refusals)
    assert refusal.site == "layers.1.self_attn"
    assert refusal.nodes


def test_a_region_that_needs_something_else_is_refused():
    """Which dims the keys hold depends on an input: nothing that matrices could say."""

    def chosen(tape, value):
        places = tape.input("places", (1, 1), 7)
        update = tape(
            "Slice", tape("Transpose", value, perm=[3, 0, 1, 2]), tape.ints(0), tape.ints(1)
        )
        turned = tape("Transpose", value, perm=[3, 0, 1, 2])
        return tape("Transpose", tape("ScatterND", turned, places, update), perm=[1, 2, 3, 0])

    graph = graph_of(Block(edits={"key": chosen}))
    find, result = run(graph, *FIND, "extract_weights")
    assert graph.sites == []
    (refusal,) = (*find.refusals, *result.refusals)
    assert refusal.code == "tokens_apart"
    assert "ScatterND" in refusal.reason


def test_without_sites_there_is_nothing_to_do():
    graph = graph_of(Block())
    (result,) = run(graph, "extract_weights")
    assert (result.matched, result.refusals) == (0, ())


def test_promises_matrices_of_every_site_that_is_left():
    graph = graph_of(Block())
    run(graph, *FIND)
    with pytest.raises(PassError, match=r"layers\.0\.self_attn was kept without matrices"):
        ExtractWeights().ensures(graph)


@pytest.mark.parametrize("in_threads", [True, False])
def test_proofs_stay_with_their_sites(monkeypatch, in_threads):
    """However many are made at a time; a layer whose proof breaks is the one that is dropped."""
    certify = provers.certify

    def breaking(graph, site, weights):
        if "layers.1." in site.name or "layers.4." in site.name:
            raise InputError(f"nothing comes of {site.name}")
        return certify(graph, site, weights)

    monkeypatch.setattr(provers, "certify", breaking)
    graph = graph_of(Block(layers=6))
    graph.runs_in_threads = in_threads
    *_, result = run(graph, *FIND, "extract_weights")
    assert result.matched == 6
    assert [each.site for each in result.refusals] == ["layers.1.self_attn", "layers.4.self_attn"]
    assert all(each.site in each.reason for each in result.refusals)
    assert [site.name[7] for site in graph.sites] == ["0", "2", "3", "5"]
    by_itself = graph_of(Block(layers=6))
    run(by_itself, *FIND, "extract_weights")
    for site in graph.sites:
        (same,) = (each for each in by_itself.sites if each.name == site.name)
        assert (site.weights.by_head == same.weights.by_head).all()
        assert site.certificate_error == same.certificate_error


def test_other_errors_of_a_proof_are_not_taken_for_a_property_of_the_model(monkeypatch):
    def broken(graph, site, weights):
        raise MemoryError

    monkeypatch.setattr(provers, "certify", broken)
    with pytest.raises(MemoryError):
        run(graph_of(Block(layers=6)), *FIND, "extract_weights")


def test_matrices_do_not_pile_up_before_they_are_proved(monkeypatch):
    """Many layers are 32 MB each."""
    waiting, most = 0, 0
    extracted, completed = extract_weights._extracted, extract_weights._completed

    def read(*given):
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        return extracted(*given)

    def done(*given):
        nonlocal waiting
        waiting -= 1
        return completed(*given)

    monkeypatch.setattr(extract_weights, "_extracted", read)
    monkeypatch.setattr(extract_weights, "_completed", done)
    monkeypatch.setattr(provers, "_MOST", 1)
    run(graph_of(Block(layers=6)), *FIND, "extract_weights")
    assert (waiting, most) == (0, 2)
