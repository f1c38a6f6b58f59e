from __future__ import annotations

import pytest

from mla_opt.errors import PassError
from mla_opt.passes.choose_form import ChooseForm
from tests.graphs.latent_block import Block
from tests.passes.harness import EXTRACT, FIND, graph_of, lines, run


def chosen(block: Block, absorb="factored", prefill="auto", **options):
    graph = graph_of(block)
    run(graph, *EXTRACT)
    before = lines(graph.model)
    (result,) = run(graph, ChooseForm(absorb=absorb, prefill=prefill, **options))
    assert lines(graph.model) == before
    (site,) = graph.sites
    return site, result


@pytest.mark.parametrize("form", ["factored", "fold-q", "fold-o", "fold", "none"])
def test_what_is_asked_for_is_done(form):
    site, result = chosen(Block(), form)
    assert (site.form, site.form_reason) == (form, "asked for")
    assert (site.query_projection is not None) == (form in ("fold-q", "fold"))
    assert (site.output_projection is not None) == (form in ("fold-o", "fold"))
    assert result.refusals == ()
    assert result.notes == (f"{form}: asked for",)


def test_auto_folds_small_models_and_gives_a_reason():
    site, result = chosen(Block(), "auto", "absorbed")
    assert site.form == "fold-q"
    assert "weights" in site.form_reason
    assert result.notes == (f"fold-q: {site.form_reason}",)


def test_auto_keeps_matrices_that_long_queries_need():
    site, _ = chosen(Block(), "auto", "auto")
    assert (site.form, site.prefill) == ("factored", "auto")


def test_auto_does_not_fold_where_that_stores_more():
    block = Block(heads=4, nope=4, rope=2, value=4, latent=24, q_lora=20)
    site, _ = chosen(block, "auto", "absorbed")
    assert site.form == "factored"


@pytest.mark.parametrize("prefill", ["absorbed", "expanded"])
def test_prefill_is_what_is_asked_for(prefill):
    site, _ = chosen(Block(), prefill=prefill)
    assert (site.prefill, site.prefill_reason) == (prefill, "asked for")


def test_prefill_auto_chooses_at_run_time():
    assert chosen(Block())[0].prefill == "auto"


def test_one_query_at_a_time_needs_no_prefill():
    site, _ = chosen(Block(query_len=1))
    assert site.prefill == "absorbed"


@pytest.mark.parametrize("form", ["fold-q", "fold-o", "fold"])
def test_folded_weights_are_not_expanded_again(form):
    site, _ = chosen(Block(), form, "expanded")
    assert site.prefill == "absorbed"
    assert "folded" in site.prefill_reason


def test_what_is_not_absorbed_is_expanded():
    assert chosen(Block(), "none", "absorbed")[0].prefill == "expanded"


def test_an_operator_that_holds_its_weights_has_both_forms_on_any_cache():
    for prefill, wanted in (("auto", "auto"), ("expanded", "expanded"), ("absorbed", "absorbed")):
        site, _ = chosen(Block(), "auto", prefill, in_place=True, held=True)
        assert (site.form, site.prefill) == ("factored", wanted)
    site, _ = chosen(Block(cache="none"), held=True)
    assert (site.prefill, site.notes) == ("expanded", [])
    site, _ = chosen(Block())
    assert site.notes == ["W_UK and W_UV are stored in the type of the queries"]


def test_buffers_written_in_place_are_not_expanded():
    assert chosen(Block(), prefill="expanded", in_place=True)[0].prefill == "absorbed"


# Folding that is not possible


def normed(tape, rows):
    return tape("Tanh", rows)


def normed_in_part(tape, parts):
    nope, rope = parts
    return tape("Tanh", nope), rope


def added(tape, query):
    return tape("Tanh", query)


def biased(tape, rows):
    offset = tape.stored(tape.numbers("q_bias", 36), "q_bias")
    return tape("Add", rows, offset)


def sliced(tape, parts):
    """Two Slices in the place of one Split, as TorchScript writes it."""
    whole = tape.nodes[-1].input[0]
    bounds = [(tape.ints(0), tape.ints(8)), (tape.ints(8), tape.ints(12))]
    return [tape("Slice", whole, *each, tape.ints(3)) for each in bounds]


def read_twice(tape, context):
    tape("Identity", context, name="context_copy")
    tape.output("context_copy", "context_out", ("B", 3, "S", 6))
    return context


def doubled_by_index(tape, flat):
    """Half of the heads' dims twice, the other half not at all."""
    return tape("Gather", flat, tape.ints(*range(9), *range(9)), axis=2)


def padded(tape, flat):
    half = tape("Slice", flat, tape.ints(0), tape.ints(9), tape.ints(2))
    return tape("Pad", half, tape.ints(0, 0, 0, 0, 0, 9))


def capped(tape, flat):
    return tape("Tanh", flat)


def doubled(tape, flat):
    return tape("Mul", flat, tape.scalar(2.0))


BLOCKED = {
    "norm on the query": ("fold-q", "query_rows", normed, "not one projection and layout"),
    "norm on a part": ("fold-q", "query_parts", normed_in_part, "not split off one projection"),
    "query changed at last": ("fold-q", "query", added, "changed after its projection"),
    "query in another order": ("fold-q", None, None, "not two parts put together"),
    "query bias": ("fold-q", "query_rows", biased, "shifted after its projection"),
    "query cut in slices": ("fold-q", "query_parts", sliced, "not split off one projection"),
    "something before W_O": ("fold-o", "flat", capped, "between the output and W_O"),
    "a factor before W_O": ("fold-o", "flat", doubled, "between the output and W_O"),
    "some dims twice": ("fold-o", "flat", doubled_by_index, "on its way to W_O"),
    "some dims dropped": ("fold-o", "flat", padded, "on its way to W_O"),
    "a second reader": ("fold-o", "context", read_twice, "more than the projection reads"),
    "value bias": ("fold-o", None, None, "the values have a bias"),
    "one of both": ("fold", "flat", capped, "between the output and W_O"),
}


@pytest.mark.parametrize("case", BLOCKED)
def test_a_fold_that_is_not_possible_is_refused_and_the_site_kept_factored(case):
    form, point, edit, reason = BLOCKED[case]
    options = {
        "query in another order": {"order": tuple(reversed(range(12)))},
        "value bias": {"value_bias": True},
    }.get(case, {})
    block = Block(edits={point: edit} if point else {}, **options)
    site, result = chosen(block, form)
    assert site.form == "factored"
    assert (site.query_projection, site.output_projection) == (None, None)
    (refusal,) = result.refusals
    assert (refusal.site, refusal.code) == ("layers.0.self_attn", "fold_blocked")
    assert reason in refusal.reason
    assert site.form_reason == f"{form} is not possible: {refusal.reason}"


def test_auto_is_not_refused_what_nobody_asked_for():
    """`auto` takes what can be done; a refusal answers a request."""
    site, result = chosen(Block(edits={"query_rows": normed}), "auto", "absorbed")
    assert site.form == "factored"
    assert result.refusals == ()


def test_needs_geometry():
    graph = graph_of(Block())
    run(graph, *FIND)
    with pytest.raises(PassError, match="run extract_weights first"):
        run(graph, "choose_form")
