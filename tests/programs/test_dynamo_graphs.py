"""`optimize` on graphs that Dynamo hands to a backend: sizes and weights are arguments there."""

from __future__ import annotations

import copy

import pytest
import torch

import mla_opt
from mla_opt.programs.dynamo import attribute_path, own_tensors
from tests.programs import exporting

SIZES = ((2, 5, 11), (3, 60, 4))


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(backend, *sizes):
    """How far the model is from itself, compiled with sizes that vary."""
    flat = exporting.model("deepseek_v3")
    return exporting.worst_error(flat, torch.compile(flat, backend=backend, dynamic=True), sizes)


def test_a_graph_is_rewritten_and_called_as_before():
    reports = []

    def backend(module, values):
        result = mla_opt.optimize(module)
        reports.append(result.report)
        assert _arguments(result.model) == _arguments(module)
        assert {type(value) for value in values} >= {torch.SymInt, torch.nn.Parameter}
        return result.model.forward

    assert compiled(backend, *SIZES) < 5e-5
    (report,) = reports
    assert report.verification["passed"]
    assert not any(run["skipped"] for run in report.verification["scenarios"])
    assert [site.name for site in report.sites] == ["layers.0.self_attn", "layers.1.self_attn"]


def _arguments(module):
    return [node.name for node in module.graph.find_nodes(op="placeholder")]


def test_a_graph_whose_weights_are_not_known_is_refused():
    def backend(module, values):
        alone = copy.copy(module)
        alone.graph = copy.deepcopy(module.graph)
        for node in alone.graph.find_nodes(op="placeholder"):
            node.meta = {"example_value": node.meta["example_value"]}
        with pytest.raises(mla_opt.NothingMatchedError) as caught:
            mla_opt.optimize(alone)
        (refusal, _) = caught.value.report.refusals
        assert refusal.code == "projection_not_constant"
        assert refusal.remedy == "store the projection weight in the model"
        return module.forward

    compiled(backend, (2, 5, 11))


def test_values_that_are_given_outrank_notes():
    graph = torch.fx.Graph()
    graph.output((graph.placeholder("weight"), graph.placeholder("x")))
    module = torch.fx.GraphModule(torch.nn.Module(), graph)
    assert own_tensors(module) == {}
    weight = torch.nn.Parameter(torch.ones(2))
    assert list(own_tensors(module, [weight, torch.ones(2)])) == ["weight"]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("l_self_modules_layers_modules_0_parameters_weight_", "layers.0.weight"),
        ("l_self_modules_kv_b_proj_parameters_weight_", "kv_b_proj.weight"),
        ("l_self_buffers_inv_freq_", "inv_freq"),
        ("l_hidden_states_", "l_hidden_states_"),
    ],
)
def test_paths_are_read_off_names(name, path):
    assert attribute_path(name) == path
