from __future__ import annotations

import json

import onnx_ir as ir
import pytest

from mla_opt.errors import InputError
from mla_opt.verification import InterfaceMap, read_sites, sites_to_json, verify
from tests.verify import toys


def text(**changes):
    return json.dumps(toys.interface(toys.state("packed", ["a"], ["b"]), **changes))


def entry(**changes):
    return json.dumps(toys.interface(toys.state("packed", ["a"], ["b"]) | changes))


@pytest.mark.parametrize("content", [toys.PACKED_MAP, toys.STATIC_MAP, toys.SPLIT_MAP])
def test_round_trip(content):
    found = InterfaceMap.from_json(json.dumps(content))
    assert json.loads(found.to_json()) == content
    assert InterfaceMap.from_json(found.to_json()) == found


def test_no_entry_means_no_change():
    assert InterfaceMap.of(ir.from_proto(toys.optimized())) == InterfaceMap()


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "must be a JSON object, not list"),
        ("{}", "no field 'version'"),
        (text(version=2), "version 2"),
        (text(version=True), "version must be an integer"),
        (text(version="1"), "version must be an integer"),
        (text(states={}), "states must be a list"),
        (text(states=[3]), r"states\[0\] must be a JSON object"),
        (text(states=[{}]), r"states\[0\] has no field"),
        (text(past_len_input=""), "past_len_input must be a non-empty string"),
        (text(past_len_input="n"), "but no layout is static"),
        (text(capacity=0), "capacity must be an integer of at least 1"),
        (text(capacity=1e99), "capacity must be an integer"),
        (text(capacity=1 << 70), "capacity must be an integer"),
        (entry(layout="tiled"), "none of split, packed, static"),
        (entry(kv_lora_rank=-1), "kv_lora_rank must be an integer of at least 1"),
        (entry(kv_lora_rank=float("nan")), "kv_lora_rank must be an integer"),
        (entry(original={"inputs": "past", "outputs": []}), "inputs must be a list"),
        (entry(original={"inputs": ["p", "p"], "outputs": ["q", "r"]}), "without repetition"),
        (entry(original={"inputs": ["p"], "outputs": []}), "pair each input with one output"),
        (entry(original={"inputs": [], "outputs": []}), "pair each input with one output"),
        (entry(layer=None), "layer must be a non-empty string"),
    ],
)
def test_hostile_json_is_refused_by_name(hostile, message):
    with pytest.raises(InputError, match=message):
        InterfaceMap.from_json(hostile)


def test_one_tensor_in_two_states_is_refused():
    states = [toys.state("packed", [n], [n + "'"]) for n in "ab"]
    with pytest.raises(InputError, match="'past_0_keys' of the original model twice"):
        InterfaceMap.from_json(json.dumps(toys.interface({}, states=states)))


def verify_with_map(content):
    model = toys.build(toys.PACKED, toys.ABSORBED, {"mla_opt.interface": content})
    return verify(toys.original(), model, controls=False)


def test_a_map_of_tensors_that_do_not_exist_is_refused():
    entry = toys.state("packed", ["nowhere"], ["present_0_latent"])
    with pytest.raises(InputError, match="nowhere"):
        verify_with_map(toys.interface(entry))


def test_a_map_that_pairs_what_cannot_be_a_state_is_refused():
    entry = toys.state("packed", ["past_0_latent"], ["logits"])
    with pytest.raises(InputError, match="'logits' continues input 'past_0_latent'"):
        verify_with_map(toys.interface(entry))


def test_an_unexplained_difference_names_inputs_and_outputs():
    model = toys.build(toys.PACKED, toys.ABSORBED)
    with pytest.raises(InputError) as caught:
        verify(toys.original(), model)
    assert "only in the original: past_0_keys, past_0_values" in str(caught.value)
    assert "only in the optimized: past_0_latent" in str(caught.value)


def test_an_unexplained_output_is_named():
    model = toys.optimized()
    extra = model.graph.output.add()
    extra.CopyFrom(model.graph.output[0])
    extra.name = "y"
    with pytest.raises(InputError, match=r"outputs .*only in the optimized: y"):
        verify(toys.original(), model)


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        ("{}", "must be a list of sites"),
        ("[1]", r"sites\[0\] must be a JSON object"),
        (json.dumps([toys.site(scale="1")]), "scale must be a number"),
        (json.dumps([toys.site(scale=float("inf"))]), "scale must be a number"),
        (json.dumps([toys.site(scale=True)]), "scale must be a number"),
        (json.dumps([toys.site(scale=10**400)]), "scale must be a number"),
        (json.dumps([toys.site(query=7)]), "query must be a non-empty string"),
        (json.dumps([toys.site(qk_rope_head_dim=None)]), "qk_rope_head_dim must be an integer"),
    ],
)
def test_hostile_site_records_are_refused_by_name(hostile, message):
    model = ir.from_proto(toys.original())
    model.metadata_props["mla_opt.sites"] = hostile
    with pytest.raises(InputError, match=message):
        read_sites(model)


def test_site_records_round_trip():
    model = ir.from_proto(toys.optimized(w_uk=None, prefill_threshold=17, scale_node="extra"))
    (site,) = read_sites(model)
    assert (site.w_uk, site.prefill_threshold, site.scale) == (None, 17, toys.SCALE)
    model.metadata_props["mla_opt.sites"] = sites_to_json((site,))
    assert read_sites(model) == (site,)
