"""One `load` and one `generate` for bundles of ONNX Runtime, programs of PyTorch, and engines."""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path

import pytest

import mla_opt
from mla_opt import runtimes
from mla_opt.bundles import BundleOptions, export_bundle
from mla_opt.errors import InputError
from mla_opt.kernels import trust
from mla_opt.models import demo_model
from mla_opt.runtimes import generate, load
from mla_opt.runtimes.onnxruntime import generate as generate_by_onnxruntime
from mla_opt.runtimes.onnxruntime import session
from mla_opt.verification.running import RunError
from tests.bundles.conftest import NEW, PROMPT, ROWS, _notes_of_its_own, made, wanted  # noqa: F401 (fixtures)
from tests.engines.token_model import token_model

PROMPTS = [PROMPT, [7, 7], [4, 9, 9, 1, 0, 3, 2, 6]]


def listed(result) -> list[list[int]]:
    return [row.tolist() for row in result.tokens]


# Bundles


def test_a_bundle_says_what_its_model_says(made, wanted):  # noqa: F811
    model = load(made)
    assert (model.runtime, model.manifest.rows) == ("onnxruntime", ROWS)
    result = generate(model, PROMPT, max_new_tokens=NEW)
    assert listed(result) == [wanted]
    assert result.cache.capacity == ROWS


def test_batches_turns_and_draws_of_a_bundle(made):  # noqa: F811
    model, original = load(str(made)), session(demo_model())
    seen = generate(model, PROMPTS, max_new_tokens=5, stop_tokens=[3])
    said = generate_by_onnxruntime(original, PROMPTS, max_new_tokens=5, stop_tokens=[3])
    replies = [[3], [6, 1, 4], [8]]
    options = {"max_new_tokens": 6, "temperature": 0.8, "top_k": 9, "seed": 4}
    again = generate(model, replies, cache=seen.cache, **options)
    said_again = generate_by_onnxruntime(original, replies, cache=said.cache, **options)
    assert listed(seen) == listed(said)
    assert listed(again) == listed(said_again)
    with pytest.raises(InputError, match="rows do not fit in a cache"):
        generate(model, PROMPT, max_new_tokens=ROWS)
    with pytest.raises(InputError, match="the cache is of another model"):
        generate(load(made), replies, cache=seen.cache, **options)


@pytest.fixture
def bundle(made, tmp_path) -> Path:  # noqa: F811
    return shutil.copytree(made, tmp_path / "bundle")


@pytest.mark.parametrize("name", ["model.onnx", "libmla_opt_kernels.so"])
def test_what_was_changed_is_not_loaded(bundle, name):
    with (bundle / name).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match=f"{name}: is not the file that the manifest tells of"):
        load(bundle, allow_host_code=True)
    (bundle / name).unlink()
    with pytest.raises(InputError, match=f"{name}: cannot be read"):
        load(bundle, allow_host_code=True)


def test_a_library_that_was_not_built_here(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with pytest.raises(InputError, match="is code that was not built here"):
        load(bundle)
    assert load(bundle, allow_host_code=True).runtime == "onnxruntime"
    monkeypatch.setenv(
        trust.HASHES_VARIABLE, load(bundle, allow_host_code=True).manifest.library.file.sha256
    )
    assert load(bundle).runtime == "onnxruntime"
    (bundle / "libmla_opt_kernels.so").chmod(0o666)
    with pytest.raises(InputError, match="others can write"):
        load(bundle)


def test_a_library_for_another_machine(bundle, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "sparc")
    with pytest.raises(InputError, match=r"its library is for Linux .*, and this is Linux sparc"):
        load(bundle)


def test_released_widths(tmp_path):
    source = token_model(tmp_path / "wide.onnx")
    export_bundle(source, tmp_path / "bundle", BundleOptions(64, verify=False))
    prompts = [[3, 14, 15, 9, 26], [5, 35]]
    said = generate_by_onnxruntime(session(source), prompts[0], max_new_tokens=8)
    model = load(tmp_path / "bundle")
    assert listed(generate(model, prompts[0], max_new_tokens=8)) == listed(said)


def test_the_kernel_of_the_bundle_is_used(made):  # noqa: F811
    attention = load(made).decoder.description.attention
    assert attention.fused


# What can be loaded


def test_what_is_none(tmp_path, made):  # noqa: F811
    with pytest.raises(InputError, match=r"is no folder that `mla-opt export` wrote, and no prog"):
        load(made / "model.onnx")
    with pytest.raises(InputError, match=r"manifest\.json: cannot be read"):
        load(tmp_path)


def test_names():
    assert runtimes.__all__ == sorted(runtimes.__all__)
    for name in runtimes.__all__:
        assert getattr(runtimes, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        _ = runtimes.lode


# Programs of PyTorch


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    torch = pytest.importorskip("torch")
    from tests.runtimes import torch_model

    path = tmp_path_factory.mktemp("program") / "m.mla.pt2"
    torch.export.save(mla_opt.optimize(torch_model.exported(), verify=False).model, path)
    return path


SHORT = [[5, 3, 8, 1, 2], [7, 7], [4, 9, 9, 1, 0, 3, 2, 6]]


def test_a_program_says_what_its_module_says(program):
    from tests.runtimes.torch_model import greedy

    model = load(program)
    assert (model.runtime, model.manifest) == ("torch", None)
    seen = generate(model, SHORT, max_new_tokens=6)
    assert listed(seen) == [greedy(each, 6) for each in SHORT]
    again = generate(model, [[3], [1, 1], [2]], max_new_tokens=4, cache=seen.cache)
    text = [*SHORT[1], *seen.tokens[1].tolist(), 1, 1]
    assert again.tokens[1].tolist() == greedy(text, 4)
    assert again.cache.lengths.tolist()[1] == len(text) + 3
    with pytest.raises(InputError, match="the cache holds 3 sequences, but tokens of 2"):
        seen.cache.append([[1], [2]])


def test_a_program_that_was_not_optimized(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), path)
    with pytest.raises(InputError, match="is no optimized program; run `mla-opt optimize` on it"):
        load(path)


def test_a_program_that_keeps_its_cache_itself(tmp_path):
    """Two caches of it do not disturb each other."""
    torch = pytest.importorskip("torch")
    from tests.runtimes import torch_model

    path = tmp_path / "m.mla.pt2"
    torch.export.save(
        mla_opt.optimize(torch_model.exported_with_buffers(), verify=False).model, path
    )
    model, text = load(path), [5, 3, 8]
    one = generate(model, text, max_new_tokens=3)
    generate(model, [7, 7, 1, 2], max_new_tokens=2)
    more = generate(model, [4], max_new_tokens=4, cache=one.cache)
    said = torch_model.greedy(text, 3)
    assert listed(one) == [said]
    assert listed(more) == [torch_model.greedy([*text, *said, 4], 4)]
    with pytest.raises(InputError, match="takes 1 at once, not 2"):
        model.new_cache(2)
    with pytest.raises(RunError, match=r"m\.mla\.pt2: PyTorch does not run it"):
        more.cache.append([1] * torch_model.ROWS)


def test_without_pytorch(tmp_path, monkeypatch):
    for name in [each for each in sys.modules if each.startswith("mla_opt.runtimes.torch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="and PyTorch is missing: pip install torch"):
        load(tmp_path / "m.pt2")
