"""Guards of what others rely on: names, signatures, what an import costs, where passes live."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import inspect
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import onnx
import onnx_ir as ir
import pytest

import mla_opt
from mla_opt import passes
from mla_opt.pipeline import Pass, PassResult
from tests.graphs.latent_block import Block, build
from tests.passes.harness import assert_same

ROOT = Path(mla_opt.__file__).parent.parent


def run_python(code: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_names():
    assert mla_opt.__all__ == sorted(mla_opt.__all__)
    assert set(mla_opt.__all__) == {
        "FolderResult",
        "InputError",
        "InspectionReport",
        "KernelUnavailableError",
        "MlaGeometry",
        "MlaOptError",
        "NothingMatchedError",
        "OptimizationReport",
        "OptimizeResult",
        "ParityReport",
        "PassError",
        "Refusal",
        "RefusedError",
        "VerificationError",
        "attach_function_bodies",
        "find",
        "inspect",
        "kernel_library",
        "onnx_translation_table",
        "optimize",
        "optimize_folder",
        "register_sharding",
        "verify",
    }
    assert dir(mla_opt) == mla_opt.__all__


@pytest.mark.parametrize("name", mla_opt.__all__)
def test_every_name_is_there_and_stays(name):
    _ = getattr(mla_opt, name)
    importlib.import_module("mla_opt.api")
    found = getattr(mla_opt, name)
    assert found.__module__.startswith("mla_opt.")
    assert found.__doc__


def test_one_version():
    done = subprocess.run(
        [sys.executable, "-m", "mla_opt", "--version"], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == f"mla-opt {mla_opt.__version__}"
    assert mla_opt.__version__ == importlib.metadata.version("mla-opt")


def test_the_version_of_a_checkout_that_is_not_installed(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    assert mla_opt.__version__ == "unknown"


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="module 'mla_opt' has no attribute 'optimise'"):
        _ = mla_opt.optimise


SIGNATURES = {
    "optimize": {
        "model": inspect.Parameter.empty,
        "target": "onnxruntime",
        "absorb": "auto",
        "cache": "keep",
        "cache_type": "keep",
        "prefill": "auto",
        "verify": True,
        "passes": None,
        "phase": "decode",
        "plugin": True,
        "keep_activation_quantization": False,
        "weights": "auto",
        "matmul_nbits": "keep",
        "allow_unmatched": False,
        "observer": None,
    },
    "inspect": {"model": inspect.Parameter.empty},
    "find": {"model": inspect.Parameter.empty},
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    parameters = inspect.signature(getattr(mla_opt, name)).parameters
    assert {key: each.default for key, each in parameters.items()} == SIGNATURES[name]
    kinds = [each.kind for each in parameters.values()]
    assert kinds[0] is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert set(kinds[1:]) <= {inspect.Parameter.KEYWORD_ONLY}


def test_verify_takes_two_models():
    parameters = list(inspect.signature(mla_opt.verify).parameters.values())
    assert [each.name for each in parameters[:2]] == ["original", "optimized"]
    assert {each.kind for each in parameters[2:]} <= {inspect.Parameter.KEYWORD_ONLY}


def test_one_way_to_open_and_to_generate():
    from mla_opt import runtimes

    assert runtimes.__all__ == ["GenerationResult", "LoadedModel", "generate", "load"]
    assert list(inspect.signature(runtimes.load).parameters) == ["path", "allow_host_code"]
    parameters = inspect.signature(runtimes.generate).parameters.values()
    assert [each.name for each in parameters][:3] == ["model", "tokens", "max_new_tokens"]
    assert {each.kind for each in list(parameters)[2:]} == {inspect.Parameter.KEYWORD_ONLY}


def test_continuous_batches():
    from mla_opt.runtimes.onnxruntime import batching

    assert batching.__all__ == [
        "AsyncBatch",
        "BatchFullError",
        "BatchToken",
        "ContinuousBatch",
        "Sampling",
        "TokenStream",
    ]
    create = inspect.signature(batching.ContinuousBatch.create).parameters
    assert list(create) == ["model", "sequences", "rows", "prompt_tokens"]
    for called in (batching.ContinuousBatch.add, batching.AsyncBatch.submit):
        assert list(inspect.signature(called).parameters) == ["self", "prompt", "sampling"]
    fields = [each.name for each in dataclasses.fields(batching.Sampling)]
    assert fields == ["max_new_tokens", "stop_tokens", "temperature", "top_k", "top_p", "seed"]


def test_the_server_for_openais_clients():
    from mla_opt.integrations import openai

    assert openai.__all__ == ["Characters", "Tokenizer", "TransformersTokenizer", "openai_app"]
    with pytest.raises(AttributeError, match="has no attribute 'openai'"):
        _ = openai.openai
    pytest.importorskip("fastapi")
    assert list(inspect.signature(openai.openai_app).parameters) == ["batch", "tokenizer", "name"]


def test_an_import_costs_nothing():
    heavy = ("numpy", "onnx", "onnx_ir", "onnxruntime", "torch", "rich", "typer", "fastapi")
    asked = (
        "import sys, mla_opt, mla_opt.integrations.openai, mla_opt.runtimes; mla_opt.__version__"
    )
    code = f"{asked}; print([m for m in {heavy!r} if m in sys.modules])"
    done = run_python(code)
    assert done.stdout.strip() == "[]", done.stderr


def test_optimizing_needs_no_torch():
    code = "import sys, mla_opt; mla_opt.optimize; print('torch' in sys.modules)"
    assert run_python(code).stdout.strip() == "False"


# Passes


def test_passes_are_the_files_of_their_folder():
    files = {path.stem for path in (ROOT / "passes").glob("*.py")} - {"__init__"}
    assert set(passes.BUILT_IN) == files


def test_the_list_in_the_docstring_is_the_pipeline():
    listed = [line.split("`")[1] for line in (passes.__doc__ or "").splitlines() if ". `" in line]
    assert listed == list(passes.BUILT_IN)


def test_every_pass_file_has_a_test_file():
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests/passes").glob("test_*.py")}
    assert set(passes.BUILT_IN) <= tests


def test_classes_are_named_after_their_files():
    for name, kind in passes.BUILT_IN.items():
        assert kind == "".join(word.capitalize() for word in name.split("_"))


def test_the_folder_is_no_package_of_its_own():
    done = run_python("import passes")
    assert done.returncode != 0
    assert "import the passes as mla_opt.passes" in done.stderr


def test_one_module_however_it_is_reached():
    first = importlib.import_module("mla_opt.passes.clean_up")
    assert passes.load("clean_up") is first.CleanUp


def test_listing_passes_imports_none():
    code = (
        "import sys, mla_opt.passes as p; p.names(); p.available();"
        "print([m for m in sys.modules if m.startswith('mla_opt.passes.')])"
    )
    assert run_python(code).stdout.strip() == "[]"


@dataclass(frozen=True)
class NotePass(Pass):
    """A pass of another package."""

    name: ClassVar[str] = "note"

    def run(self, graph) -> PassResult:
        return PassResult(matched=len(graph.sites), notes=("seen",))


class FakeCleanUp(NotePass):
    name: ClassVar[str] = "clean_up"


@pytest.fixture
def third_party(monkeypatch):
    def entries(*, group: str) -> list[EntryPoint]:
        assert group == "mla_opt.passes"
        return [
            EntryPoint("note", f"{__name__}:NotePass", group),
            EntryPoint("clean_up", f"{__name__}:FakeCleanUp", group),
            EntryPoint("broken", "no_such_module:Pass", group),
        ]

    monkeypatch.setattr(passes, "entry_points", entries)


@pytest.mark.usefixtures("third_party")
def test_passes_of_other_packages_are_found_by_entry_point():
    assert "note" in passes.available()
    assert passes.load("note") is NotePass
    result = mla_opt.optimize(
        build(Block()), verify=False, passes=["find_latent_attention", "extract_weights", "note"]
    )
    (*_, note) = result.report.passes
    assert (note.name, note.matched, note.notes) == ("note", 1, ("seen",))


@pytest.mark.usefixtures("third_party")
def test_no_other_package_takes_the_place_of_a_pass():
    assert passes.load("clean_up") is not FakeCleanUp


@pytest.mark.usefixtures("third_party")
def test_a_broken_package_does_no_harm_until_it_is_asked_for():
    assert "broken" in passes.available()
    assert passes.load("find_latent_attention")
    with pytest.raises(ModuleNotFoundError):
        passes.load("broken")


# The functions


@pytest.mark.parametrize("form", ["proto", "graph", "path", "text"])
def test_a_model_is_taken_in_every_form_and_never_changed(form, tmp_path):
    block = Block()
    proto = build(block)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    given = {"proto": proto, "graph": ir.from_proto(proto), "path": path, "text": str(path)}[form]
    before = given.graph.num_nodes() if form == "graph" else path.read_bytes()
    result = mla_opt.optimize(given, verify=False)
    assert len(result.report.sites) == 1
    assert_same(block, result.model, sizes=((2, 4, 3),))
    assert (given.graph.num_nodes() if form == "graph" else path.read_bytes()) == before
    assert build(block) == proto
    (found,) = mla_opt.find(given)
    assert found.name == "layers.0.self_attn"


def test_nothing_matched():
    with pytest.raises(mla_opt.NothingMatchedError) as error:
        mla_opt.optimize(build(Block(layers=0)))
    assert str(error.value) == "the model has no attention that mla-opt can see"
    assert error.value.report is not None


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_an_optimized_model_says_so(target):
    optimized = mla_opt.optimize(build(Block()), target=target, verify=False).model
    with pytest.raises(mla_opt.NothingMatchedError, match="optimized the model already; give"):
        mla_opt.optimize(optimized)
    (note,) = mla_opt.inspect(optimized).notes
    assert "has optimized this model" in note
    assert mla_opt.inspect(build(Block())).notes == ()


@pytest.mark.parametrize(
    ("options", "form", "cache"),
    [
        ({}, "factored", "split"),
        ({"cache": "packed", "absorb": "fold-q", "prefill": "absorbed"}, "fold-q", "packed"),
        ({"cache": "static:1k", "absorb": "fold-o", "prefill": "absorbed"}, "fold-o", "static"),
        ({"absorb": "fold", "prefill": "absorbed"}, "fold", "split"),
        ({"target": "portable"}, "factored", None),
    ],
)
def test_inspecting_an_optimized_model_lists_its_operators(options, form, cache):
    block = Block(layers=2, cache="latent")
    result = mla_opt.optimize(build(block), verify=False, **options)
    first, second = mla_opt.inspect(result.model).operators
    site = result.report.sites[0]
    assert (first.name, second.name) == tuple(each.name for each in result.report.sites)
    geometry = site.geometry
    nope = None if form in ("fold-q", "fold") else geometry.qk_nope_head_dim
    value = None if form in ("fold-o", "fold") else geometry.v_head_dim
    assert first.num_heads == geometry.num_heads
    assert (first.kv_lora_rank, first.qk_rope_head_dim) == (12, 4)
    assert (first.qk_nope_head_dim, first.v_head_dim) == (nope, value)
    assert (first.form, first.cache) == (form, cache)
    assert (first.node is None) == (options.get("target") == "portable")
    assert mla_opt.inspect(build(block)).operators == ()


def test_operators_are_listed_without_the_metadata_too():
    model = mla_opt.optimize(build(Block()), verify=False).model
    del model.metadata_props["mla_opt.sites"]
    (operator,) = mla_opt.inspect(model).operators
    assert (operator.form, operator.qk_rope_head_dim) == (None, Block().rope)
    assert operator.name == operator.node
    model.metadata_props["mla_opt.sites"] = '[{"name": 3}]'
    with pytest.raises(mla_opt.InputError, match=r"mla_opt\.sites"):
        mla_opt.inspect(model)


@pytest.mark.parametrize(("q_lora", "query_len"), [(None, "S"), (60, "S"), (60, 1)])
def test_inspect_names_the_form_that_optimize_takes(q_lora, query_len):
    widths = {"heads": 4, "nope": 32, "rope": 16, "value": 36, "latent": 64, "hidden": 96}
    proto = build(Block(**widths, q_lora=q_lora, query_len=query_len))
    (found,) = mla_opt.inspect(proto).matched
    (site,) = mla_opt.optimize(proto, verify=False).report.sites
    assert (found.form, found.form_reason) == (site.form, site.form_reason)
    assert (found.prefill, found.prefill_reason) == (site.prefill, site.prefill_reason)


def test_nothing_matched_says_why():
    odd = Block(edits={"value": lambda tape, value: tape("Tanh", value)})
    with pytest.raises(mla_opt.NothingMatchedError, match=r"none of 1 attentions .*not_linear"):
        mla_opt.optimize(build(odd))
    result = mla_opt.optimize(build(odd), allow_unmatched=True)
    assert [each.code for each in result.report.refusals] == ["not_linear"]


def test_a_failed_verification_is_raised_with_its_report(monkeypatch):
    """A pass that doubles W_UV after the proof: only running the model can tell."""
    from mla_opt.passes.absorb_weights import AbsorbWeights

    run = AbsorbWeights.run

    def doubled(self, graph):
        result = run(self, graph)
        stored = graph.model.graph.initializers["layers.0.self_attn/mla/w_uv"]
        stored.const_value = ir.Tensor(stored.const_value.numpy() * 2, name=stored.name)
        return result

    monkeypatch.setattr(AbsorbWeights, "run", doubled)
    with pytest.raises(mla_opt.VerificationError) as error:
        mla_opt.optimize(build(Block()), absorb="factored", weights="float")
    assert error.value.report is not None


def test_inspect_tells_of_every_attention():
    def odd(tape, value):
        return tape("Tanh", value) if tape.layer == 1 else value

    report = mla_opt.inspect(build(Block(layers=2, edits={"value": odd})))
    assert [(each.name, each.matched) for each in report.attentions] == [
        ("layers.0.self_attn", True),
        ("layers.1.self_attn", False),
    ]
