"""`session`: any kind of model, with the kernel or by function bodies."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import mla_opt
from mla_opt.errors import InputError, KernelUnavailableError
from mla_opt.models import demo_model
from mla_opt.operator import Signature
from mla_opt.operator.multi_head import MultiHeadSignature
from mla_opt.runtimes.onnxruntime import generate, session, sessions
from tests.operator import cases, multi_head_cases

PROMPT = [3, 1, 4, 1, 5]


def test_every_kind_of_model(models, tmp_path):
    path = tmp_path / "model.onnx"
    ir.save(models["keep"], path)
    proto = onnx.load(path)
    kinds = [path, str(path), path.read_bytes(), proto, models["keep"]]
    said = [generate(session(kind), PROMPT, max_new_tokens=5).tokens[0].tolist() for kind in kinds]
    assert len(set(map(tuple, said))) == 1


def test_weights_beside_the_file(models, tmp_path):
    """Above 2 GiB there is no other way; loaded by path they are found."""
    path = tmp_path / "model.onnx"
    ir.save(
        ir.from_proto(ir.to_proto(models["keep"])),
        path,
        external_data="model.onnx.data",
        size_threshold_bytes=1024,
    )
    said = generate(session(path), PROMPT, max_new_tokens=3).tokens[0].tolist()
    assert said == generate(session(models["keep"]), PROMPT, max_new_tokens=3).tokens[0].tolist()
    with pytest.raises(InputError, match="lie in a file that the message does not locate"):
        session(onnx.load(path, load_external_data=False))


@pytest.mark.parametrize("layout", ["keep", "packed", "even", "static:64", "static"])
def test_the_function_body_says_the_same(models, layout):
    one, other = (session(models[layout], kernel=kernel) for kernel in (True, False))
    first = generate(one, [PROMPT, PROMPT[:2]], max_new_tokens=8)
    second = generate(other, [PROMPT, PROMPT[:2]], max_new_tokens=8)
    assert [r.tolist() for r in first.tokens] == [r.tolist() for r in second.tokens]


def test_the_kernel_is_what_runs(models, tmp_path):
    """A profile names the operators that ran."""
    for kernel, wanted in ((True, True), (False, False), ("auto", True)):
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / f"profile-{kernel}")
        opened = session(models["keep"], kernel=kernel, session_options=options)
        generate(opened, PROMPT, max_new_tokens=2)
        with open(opened.end_profiling()) as file:  # noqa: PTH123
            assert ('"MultiHeadLatentAttention"' in file.read()) == wanted


def test_without_a_kernel_models_run_by_their_bodies(models, monkeypatch):
    def missing():
        raise KernelUnavailableError("no kernel was built here")

    monkeypatch.setattr(sessions, "kernel_available", lambda: False)
    monkeypatch.setattr(sessions, "kernel_library", missing)
    assert generate(session(models["keep"]), PROMPT, max_new_tokens=2).steps == 1
    with pytest.raises(KernelUnavailableError, match="no kernel was built"):
        session(models["keep"], kernel=True)


def test_options_serve_several_sessions(models):
    options = ort.SessionOptions()
    for _ in range(2):
        opened = session(models["keep"], session_options=options)
        assert generate(opened, PROMPT, max_new_tokens=2).steps == 1
    with pytest.raises(InputError, match="kernel=False, but these session options hold"):
        session(models["keep"], session_options=options, kernel=False)


def test_a_library_that_the_user_has_registered_already_is_told_of(models):
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(mla_opt.kernel_library()))
    with pytest.raises(InputError, match="hold the kernel library twice"):
        session(models["keep"], session_options=options)


def test_a_session_of_the_users_own_generates(models, tmp_path):
    """Names, shapes and metadata are all that it tells, and they suffice."""
    path = tmp_path / "model.onnx"
    ir.save(models["keep"], path)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(mla_opt.kernel_library()))
    own = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    said = generate(own, [PROMPT, [7]], max_new_tokens=5)
    ours = generate(session(path), [PROMPT, [7]], max_new_tokens=5)
    assert [r.tolist() for r in said.tokens] == [r.tolist() for r in ours.tokens]


def test_threads_are_set(models):
    options = session(models["keep"], intra_op_threads=1, inter_op_threads=1).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


def test_files_that_are_no_models_are_refused(tmp_path):
    path = tmp_path / "broken.onnx"
    whole = demo_model().read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"broken\.onnx"):
        session(path)
    with pytest.raises(InputError, match=r"missing\.onnx"):
        session(tmp_path / "missing.onnx")
    with pytest.raises(InputError, match="9 bytes that are no ONNX model"):
        session(b"not onnx.")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("query", "INT32", "query is int32, expected one of float32"),
        ("latent", "FLOAT16", "latent is float16, expected float32 for a query of float32"),
        (
            "cache",
            "DOUBLE",
            "cache is float64, expected float32 or float16 or bfloat16 or int8 or float8_e4m3fn",
        ),
        ("past_len", "INT64", "past_len is int64, expected int32"),
        ("sink", "DOUBLE", "sink is float64, expected float32"),
        ("rope_cache", "FLOAT16", "rope_cache is float16, expected float32"),
    ],
)
def test_types_that_do_not_go_together_are_named(name, kind, message):
    """ONNX Runtime itself says no more than that no kernel matches the node."""
    signature = Signature(has_cache=True, in_place=True, split=True, bias="additive", sink=True)
    proto = cases.model(signature, cases.operands(signature))
    (value,) = (value for value in proto.graph.input if value.name == name)
    value.type.tensor_type.elem_type = getattr(onnx.TensorProto, kind)
    with pytest.raises(InputError, match=f" LatentAttention '.*': {message}"):
        session(proto)
    holding = MultiHeadSignature(signature)
    feeds = multi_head_cases.operands(holding, {"kv_b": np.zeros((16, 6), np.float32)})
    proto = multi_head_cases.model(holding, feeds)
    (value,) = (value for value in proto.graph.input if value.name == name)
    value.type.tensor_type.elem_type = getattr(onnx.TensorProto, kind)
    with pytest.raises(InputError, match=f" MultiHeadLatentAttention '.*': {message}"):
        session(proto)
