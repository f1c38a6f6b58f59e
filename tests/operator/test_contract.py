from __future__ import annotations

import pytest

from mla_opt.errors import InputError
from mla_opt.operator import Signature
from mla_opt.operator.contract import ATTRIBUTES, INPUTS, OUTPUTS
from tests.operator.cases import ALL_SIGNATURES


def test_the_legal_signatures_are_nine_sources_times_bias_sink_and_causal():
    assert len(ALL_SIGNATURES) == 9 * 3 * 2 * 2


def test_overloads_tell_all_signatures_apart():
    assert len({signature.overload for signature in ALL_SIGNATURES}) == len(ALL_SIGNATURES)


@pytest.mark.parametrize(
    ("signature", "overload", "inputs", "outputs"),
    [
        (Signature(), "latent", ("query", "latent"), OUTPUTS[:1]),
        (
            Signature(has_cache=True, split=True, bias="boolean"),
            "latent_split_boolean",
            ("query", "latent", "cache", "bias", "rope_cache"),
            OUTPUTS,
        ),
        (
            Signature(has_cache=True, in_place=True, bias="additive", sink=True, causal=True),
            "latent_cache_in_place_additive_sink_causal",
            INPUTS[:6],
            OUTPUTS[:2],
        ),
        (
            Signature(has_latent=False, has_cache=True, split=True),
            "split",
            ("query", "cache", "rope_cache"),
            OUTPUTS[:1],
        ),
    ],
)
def test_a_signature_names_what_is_present(signature, overload, inputs, outputs):
    assert (signature.overload, signature.inputs, signature.outputs) == (overload, inputs, outputs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"has_latent": False}, "neither latent nor cache"),
        ({"in_place": True}, "past_len is given without the cache"),
        ({"split": True}, "rope_cache is given without cache"),
        ({"bias": "float"}, "bias is 'float'"),
    ],
)
def test_an_inconsistent_signature_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Signature(**fields)


def test_operands_are_arranged_by_position():
    signature = Signature(has_cache=True, sink=True)
    values = {"sink": "s", "cache": "c", "query": "q", "latent": "l"}
    assert signature.arrange(values) == ["q", "l", "c", None, None, "s"]
    assert signature.has_gaps


def test_nothing_is_listed_after_the_last_operand():
    signature = Signature(has_cache=True, in_place=True)
    assert signature.slots == signature.inputs == INPUTS[:4]
    assert not signature.has_gaps


@pytest.mark.parametrize("values", [{"query": 1}, {"query": 1, "latent": 2, "bias": 3}])
def test_operands_that_the_signature_lacks_or_does_not_know_are_refused(values):
    with pytest.raises(InputError, match="takes query, latent; it was given query"):
        Signature().arrange(values)


def test_a_node_carries_every_attribute():
    attributes = Signature(causal=True).node_attributes(0.5, 512)
    assert tuple(attributes) == ATTRIBUTES
    assert attributes["causal"] == 1
    assert Signature().node_attributes(0.5, 512)["causal"] == 0
