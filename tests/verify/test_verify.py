from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from mla_opt.errors import InputError, VerificationError
from mla_opt.verification import verify
from mla_opt.verification.onnx import sessions as sessions_module
from mla_opt.verification.table import render
from tests.verify import toys

PAIRS = {
    "keep": (toys.original, toys.optimized),
    "packed": (toys.original, toys.optimized_packed),
    "static": (toys.original, toys.optimized_static),
    "expanded to split": (toys.original_expanded, toys.optimized_from_expanded),
    "expanded to packed": (toys.original_expanded, toys.optimized_packed),
    "expanded to static": (toys.original_expanded, toys.optimized_static),
}


def output(report, name="logits"):
    return next(o for o in report.outputs if o.name == name)


@pytest.mark.parametrize("case", PAIRS)
def test_every_cache_layout_is_driven_and_every_control_noticed(case):
    original, optimized = PAIRS[case]
    report = verify(original(), optimized())
    assert report.passed, report.failures
    assert [(c.name, c.applicable, c.detected) for c in report.controls] == [
        ("scale", True, True),
        ("rope", True, True),
        ("heads", True, True),
    ]
    assert output(report).argmax_agreement == 1


@pytest.mark.parametrize(
    ("case", "compared"),
    [
        ("keep", {"logits", "present_0_keys", "present_0_values"}),
        ("packed", {"logits", "present_0_keys ‖ present_0_values"}),
        ("static", {"logits", "present_0_keys ‖ present_0_values"}),
        ("expanded to packed", {"logits"}),
    ],
)
def test_states_are_compared_where_they_hold_the_same(case, compared):
    original, optimized = PAIRS[case]
    report = verify(original(), optimized(), controls=False)
    assert {o.name for o in report.outputs} == compared
    made_up = any(s.scenario.initial_past for s in report.scenarios)
    assert made_up == (len(compared) > 1)


@pytest.mark.parametrize("case", PAIRS)
@pytest.mark.parametrize("weight", ["w_uk", "w_uv", "w_c", "w_pe"])
def test_one_changed_weight_fails(case, weight):
    original, optimized = PAIRS[case]
    value = toys.weights()[weight].copy()
    value.flat[3] += 1e-2
    broken = toys.with_initializer(optimized(), weight, value)
    report = verify(original(), broken, controls=False)
    assert not report.passed
    assert report.failures


@pytest.mark.parametrize("case", ["packed", "static"])
def test_a_wrong_cache_shows_in_the_state(case):
    original, optimized = PAIRS[case]
    value = toys.weights()["w_c"] * np.float32(1.01)
    report = verify(original(), toys.with_initializer(optimized(), "w_c", value), controls=False)
    assert not output(report, "present_0_keys ‖ present_0_values").passed


def test_a_cache_that_forgets_fails_in_decode_only():
    text = toys.text(toys.STATIC, toys.ABSORBED)
    forgetful = text.replace(
        "Concat<axis = 2>(before, new_row, behind)", "Concat<axis = 2>(nothing, new_row, behind)"
    ).replace(
        "before = Slice(buffer, zero, start, two)",
        """before = Slice(buffer, zero, start, two)
    nothing = Mul(before, half)""",
    )
    model = onnx.parser.parse_model(forgetful)
    for name, value in (toys.weights() | {"half": np.float32(0.5)}).items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    model.metadata_props.add(key="mla_opt.interface", value=json.dumps(toys.STATIC_MAP))
    report = verify(toys.original(), model, controls=False)
    assert not report.passed
    assert all(not s.passed for s in report.scenarios)


def test_nan_fails():
    value = toys.weights()["w_o"].copy()
    value[0, 0] = np.nan
    report = verify(
        toys.original(), toys.with_initializer(toys.optimized(), "w_o", value), controls=False
    )
    assert not report.passed
    assert output(report).new_nonfinite
    assert any("NaN or infinite" in failure for failure in report.failures)


def test_a_given_tolerance_is_the_only_one():
    value = toys.weights()["w_uv"].copy()
    value.flat[3] += 1e-2
    broken = toys.with_initializer(toys.optimized(), "w_uv", value)
    assert verify(toys.original(), broken, tolerance=1.0, controls=False).passed
    assert not verify(toys.original(), toys.optimized(), tolerance=1e-9, controls=False).passed


def test_a_tolerance_that_hides_everything_fails_by_its_controls():
    report = verify(toys.original(), toys.optimized(), tolerance=100.0)
    assert all(scenario.passed for scenario in report.scenarios)
    assert not report.passed
    assert {c.detected for c in report.controls} == {False}


def test_the_seed_decides_the_inputs():
    first, again, other = (
        verify(toys.original(), toys.optimized(), controls=False, seed=s) for s in (0, 0, 1)
    )
    assert first.as_dict() == again.as_dict()
    assert output(first).max_abs != output(other).max_abs or first.scenarios != other.scenarios


def test_progress_counts_every_run():
    events = []
    report = verify(toys.original(), toys.optimized(), progress=events.append)
    assert [event.done for event in events] == list(range(events[0].total))
    assert events[0].total == 3 * len(report.scenarios) + len(report.controls)


# -- what models are given as ------------------------------------------------------------------


@pytest.fixture
def on_disk(tmp_path, monkeypatch):
    """Both models with their weights in a file of their own, away from the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "away").mkdir()
    paths = {}
    for name, model in (("original", toys.original()), ("optimized", toys.optimized())):
        paths[name] = tmp_path / "away" / f"{name}.onnx"
        onnx.save_model(
            model,
            paths[name],
            save_as_external_data=True,
            location=f"{name}.data",
            size_threshold=128,
        )
    return paths


def test_paths_with_external_data(on_disk):
    report = verify(on_disk["original"], str(on_disk["optimized"]))
    assert report.passed, report.failures
    assert all(control.detected for control in report.controls)


def test_graphs_with_external_data(on_disk):
    report = verify(ir.load(on_disk["original"]), ir.load(on_disk["optimized"]))
    assert report.passed, report.failures


def test_weights_too_large_for_one_message_go_by_way_of_a_file(monkeypatch):
    monkeypatch.setattr(sessions_module, "MAX_BYTES_IN_MEMORY", 0)
    assert verify(toys.original(), ir.from_proto(toys.optimized())).passed


def test_a_message_that_does_not_locate_its_weights_is_refused(on_disk):
    model = onnx.load(on_disk["original"], load_external_data=False)
    with pytest.raises(InputError, match="pass its path instead"):
        verify(model, toys.optimized())


def test_only_one_session_is_open_at_a_time(monkeypatch):
    import gc
    import weakref

    gc.freeze()  # what is there by now is not looked through for every session
    alive: list[weakref.ref[object]] = []
    load = sessions_module._load

    class Held:
        def __init__(self, session):
            self.run_with_ort_values = session.run_with_ort_values
            self.get_outputs = session.get_outputs

    def counting(*arguments):
        gc.collect()
        assert sum(reference() is not None for reference in alive) == 0
        session = Held(load(*arguments))
        alive.append(weakref.ref(session))
        return session

    monkeypatch.setattr(sessions_module, "_load", counting)
    assert verify(toys.original(), toys.optimized()).passed
    assert len(alive) == 6  # the original twice, the optimized, three controls


@pytest.mark.parametrize("content", [None, b"", b"\xff not a model"])
def test_what_is_no_model_is_refused(tmp_path, content):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.onnx: "):
        verify(path, toys.optimized())


# -- models that do not run --------------------------------------------------------------------


def only_batch(rows, model):
    """Make `model` fail, when it is run, on any batch but one."""
    next(n for n in model.graph.node if n.op_type == "Gather").output[0] = "all_rows"
    model.graph.node.insert(1, helper.make_node("Reshape", ["all_rows", "row_shape"], ["x"]))
    shape = np.asarray([rows, -1, toys.HIDDEN], np.int64)
    model.graph.initializer.append(numpy_helper.from_array(shape, "row_shape"))
    return model


def broken_operator():
    model = toys.optimized()
    next(n for n in model.graph.node if n.op_type == "Softmax").op_type = "NoSuchOperator"
    return model


def test_an_original_that_does_not_load_is_an_input_error():
    with pytest.raises(InputError, match="NoSuchOperator"):
        verify(broken_operator(), toys.optimized())


def test_an_optimized_model_that_does_not_load_fails_verification():
    with pytest.raises(VerificationError, match="NoSuchOperator"):
        verify(toys.original(), broken_operator())


def test_an_optimized_model_that_does_not_run_fails_and_says_where():
    wrong = only_batch(97, toys.optimized())
    report = verify(toys.original(), wrong, controls=False)
    assert not report.passed
    assert all(scenario.error for scenario in report.scenarios)
    assert "Reshape" in report.failures[0]


def test_what_the_original_cannot_run_is_skipped_and_said():
    report = verify(only_batch(1, toys.original()), toys.optimized(), controls=False)
    assert report.passed
    skipped = {s.scenario.batch for s in report.scenarios if s.skipped}
    assert skipped == {2, 5}
    assert "skipped" in rendered(report)


def test_what_only_the_optimized_model_cannot_run_fails():
    report = verify(toys.original(), only_batch(1, toys.optimized()), controls=False)
    assert not report.passed
    assert {s.scenario.batch for s in report.scenarios if s.error} == {2, 5}


def test_an_original_that_runs_on_nothing_is_an_input_error():
    wrong = only_batch(97, toys.original())
    with pytest.raises(InputError, match="runs on no input that was tried"):
        verify(wrong, toys.optimized())


# -- fixed sizes and other kinds of model -------------------------------------------------------


def fixed(model, name, dimension, size):
    value = next(i for i in model.graph.input if i.name == name)
    value.type.tensor_type.shape.dim[dimension].dim_value = size
    return model


def test_a_decode_component_is_fed_single_tokens():
    original = fixed(toys.original(), "input_ids", 1, 1)
    report = verify(original, toys.optimized())
    assert report.passed, report.failures
    assert all(set(s.scenario.calls) == {1} for s in report.scenarios)
    assert all(control.detected for control in report.controls)


def test_a_small_buffer_is_not_overrun():
    map_ = toys.interface(
        toys.state("static", ["buffer"], ["buffer_after"]), past_len_input="past_len", capacity=10
    )
    model = toys.build(toys.STATIC, toys.ABSORBED, {"mla_opt.interface": map_})
    for end in (*model.graph.input, *model.graph.output):
        if end.name.startswith("buffer"):
            end.type.tensor_type.shape.dim[2].dim_value = 10
    model = toys.with_initializer(model, "capacity", np.asarray([10], np.int64))
    report = verify(toys.original(), model, controls=False)
    assert report.passed, report.failures
    assert max(s.scenario.total_len for s in report.scenarios) == 10


def test_a_stateless_model_of_embeddings():
    infos = [
        helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["B", "S", 6]),
        helper.make_tensor_value_info("output", TensorProto.FLOAT, ["B", "S", 4]),
    ]

    def model(scale):
        weight = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32) * scale
        node = helper.make_node("MatMul", ["hidden", "w"], ["output"])
        graph = helper.make_graph(
            [node], "g", infos[:1], infos[1:], [numpy_helper.from_array(weight, "w")]
        )
        opset = [helper.make_opsetid("", 18)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8)

    assert verify(model(1), model(1)).passed
    assert not verify(model(1), model(np.float32(1.01))).passed


# -- the report --------------------------------------------------------------------------------


def rendered(report):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(render(report))
    return console.export_text()


def test_the_report_is_plain_json():
    report = verify(toys.original(), toys.optimized())
    content = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert content["passed"] is True
    assert {o["name"] for o in content["outputs"]} == {o.name for o in report.outputs}
    assert [c["name"] for c in content["controls"]] == ["scale", "rope", "heads"]


def test_the_tables_show_outputs_scenarios_and_controls():
    text = rendered(verify(toys.original(), toys.optimized()))
    assert "verification passed" in text
    for part in (
        "logits",
        "present_0_keys",
        "ragged batch",
        "5 2 7 1 0",
        "neighbour's W_UK",
        "detected",
    ):
        assert part in text


def test_the_tables_show_what_failed():
    value = toys.weights()["w_uv"] * 2
    text = rendered(verify(toys.original(), toys.with_initializer(toys.optimized(), "w_uv", value)))
    assert "verification failed" in text
    assert "FAILED" in text


# -- real exports ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def export():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.exports.cache import exported
    from tests.exports.spec import ExportSpec

    return exported(ExportSpec("deepseek_v3"))


def test_an_export_equals_itself(export):
    report = verify(export, export)
    assert report.passed, report.failures
    assert not any(s.skipped for s in report.scenarios)
    assert len(report.outputs) == 5
    assert {c.reason for c in report.controls} == {"mla_opt.sites names no absorbed attention"}
    assert "not applicable" in rendered(report)


def test_an_export_with_one_perturbed_weight_fails(export):
    model = onnx.load(export)
    tensor = max(
        (t for t in model.graph.initializer if len(t.dims) == 2 and list(t.dims) == [48, 132]),
        key=lambda t: t.name,
    )
    value = numpy_helper.to_array(tensor).copy()
    value[0, 0] += 1e-2
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    report = verify(export, model, controls=False)
    assert not report.passed
    assert not output(report).passed
