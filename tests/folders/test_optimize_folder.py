"""What comes out of each kind of folder: models that are optimized, configs that fit, the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import mla_opt
from mla_opt.errors import InputError, NothingMatchedError, RefusedError, VerificationError
from mla_opt.files.model_io import sha256
from mla_opt.folders.kinds import KINDS as KNOWN
from mla_opt.models import demo_model
from tests.folders import layouts
from tests.folders.layouts import EXPANDED, LATENT, NOTHING, TOKENIZER, content
from tests.graphs.latent_block import Block
from tests.passes.harness import assert_generates_same, assert_same

KINDS: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "optimum": (layouts.optimum, ("model.onnx",)),
    "optimum, in onnx/": (lambda to: layouts.optimum(to, below="onnx"), ("onnx/model.onnx",)),
    "transformers' ExportedModel": (
        lambda to: layouts.exported(to, LATENT, LATENT),
        ("prefill.onnx", "decode.onnx"),
    ),
    "onnxruntime-genai": (layouts.genai, ("model.onnx",)),
    "one ONNX file": (lambda to: layouts.save(to / "some name.onnx").parent, ("some name.onnx",)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_known_by_its_files(kind: str, tmp_path: Path) -> None:
    make, names = KINDS[kind]
    source, out = make(tmp_path / "in"), tmp_path / "out"
    before = content(source)
    result = mla_opt.optimize_folder(source, out, verify=False)
    assert (result.kind, result.output) == (kind.partition(", in")[0], out)
    assert tuple(file.name for file in result.optimized) == names
    assert content(source) == before
    after = content(out)
    assert set(after) == set(before), "data files keep their names"
    same = {name for name in before if after[name] == before[name]}
    assert same == set(before) - {name for name in before if ".onnx" in name}
    assert set(result.carried) == same
    for file in result.optimized:
        assert_same(LATENT, layouts.read(out / file.name), sizes=((2, 4, 3),))
        assert file.report is not None
        described = file.report.output
        assert described is not None
        files = [out / file.name, *((out / file.name).parent / d for d in described.external_data)]
        assert described.path == str((out / file.name).resolve())
        assert described.sha256 == sha256(files)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_the_demo_in_a_folder(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "model.onnx").write_bytes(demo_model().read_bytes())
    layouts.write(source, "config.json", {"model_type": "deepseek_v3"})
    result = mla_opt.optimize_folder(source, tmp_path / "out")
    (file,) = result.optimized
    assert file.report is not None
    assert file.report.verification is not None
    assert len(file.report.sites) == 2
    assert (result.kind, result.changes) == ("optimum", ())


def test_a_snapshot_of_the_hugging_face_cache(tmp_path: Path) -> None:
    snapshot = layouts.hugging_face_cache(tmp_path)
    assert (snapshot / "tokenizer.json").is_symlink()
    result = mla_opt.optimize_folder(snapshot, tmp_path / "out", verify=False)
    assert [file.name for file in result.optimized] == ["onnx/model.onnx"]
    after = content(tmp_path / "out")
    assert after["tokenizer.json"] == TOKENIZER
    assert {"onnx/model.onnx", "onnx/model.onnx_data"} <= set(after)
    assert_same(LATENT, layouts.read(tmp_path / "out/onnx/model.onnx"), sizes=((2, 4, 3),))


# Configs


def test_the_four_keys_of_optimum(tmp_path: Path) -> None:
    source = layouts.optimum(tmp_path / "in", EXPANDED)
    result = mla_opt.optimize_folder(source, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    changed = {
        "num_key_value_heads": 1,
        "qk_nope_head_dim": EXPANDED.latent - EXPANDED.rope,
        "qk_head_dim": EXPANDED.latent,
        "v_head_dim": EXPANDED.rope,
    }
    before = layouts.config_of(EXPANDED)
    assert config == {**before, **changed}
    told = {change.key: (change.before, change.after) for change in result.changes}
    assert told == {
        key: (before[key], value) for key, value in changed.items() if before[key] != value
    }
    assert "config.json" not in result.carried


def test_the_config_of_the_text_model(tmp_path: Path) -> None:
    source = layouts.optimum(tmp_path / "in", EXPANDED)
    layouts.write(source, "config.json", {"text_config": layouts.config_of(EXPANDED)})
    result = mla_opt.optimize_folder(source, tmp_path / "out", verify=False)
    assert "text_config.v_head_dim" in {change.key for change in result.changes}


def test_one_head_size_of_onnxruntime_genai(tmp_path: Path) -> None:
    even = Block(cache="expanded", cache_names=layouts.NAMES, latent=12, rope=12)
    source = layouts.genai(tmp_path / "in", even)
    result = mla_opt.optimize_folder(source, tmp_path / "out", verify=False)
    before, after = (
        json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
        for folder in (source, tmp_path / "out")
    )
    assert after == {**before, "head_size": 12, "num_key_value_heads": 1}
    assert {change.key for change in result.changes} == {
        "model.decoder.head_size",
        "model.decoder.num_key_value_heads",
    }


@pytest.mark.parametrize("block", [EXPANDED, LATENT], ids=["expanded", "latent"])
def test_halves_have_one_head_size(block: Block, tmp_path: Path) -> None:
    """12 and 4 numbers are two halves of 8."""
    source = layouts.genai(tmp_path / "in", block)
    result = mla_opt.optimize_folder(source, tmp_path / "out", verify=False, cache="even")
    before, after = (
        json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
        for folder in (source, tmp_path / "out")
    )
    assert after == {**before, "head_size": 8, "num_key_value_heads": 1}
    assert result.kind == "onnxruntime-genai"
    assert_generates_same(block, layouts.read(tmp_path / "out/model.onnx"))


def test_halves_in_the_words_of_optimum(tmp_path: Path) -> None:
    source = layouts.optimum(tmp_path / "in", EXPANDED)
    mla_opt.optimize_folder(source, tmp_path / "out", verify=False, cache="even")
    config = json.loads((tmp_path / "out/config.json").read_text())
    keys = ("num_key_value_heads", "qk_nope_head_dim", "qk_head_dim", "v_head_dim")
    assert [config[key] for key in keys] == [1, 8 - EXPANDED.rope, 8, 8]


def test_one_component_of_transformers_may_change_its_cache(tmp_path: Path) -> None:
    source = layouts.exported(tmp_path / "in", EXPANDED)
    result = mla_opt.optimize_folder(source, tmp_path / "out")
    assert (result.changes, set(result.carried)) == ((), {"config.json", "export.json"})
    (file,) = result.optimized
    assert file.report is not None
    assert file.report.interface_changes
    assert file.report.verification is not None


def test_every_kind_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs/folders.md").read_text().lower()
    names = [kind.name for kind in KNOWN]
    assert len(set(names)) == len(names)
    for name in names:
        assert name.split("'")[0].lower() in page


def uneven(folder: Path) -> Path:
    return layouts.genai(folder, EXPANDED)


def odd(folder: Path) -> Path:
    return layouts.genai(
        folder, Block(cache="expanded", cache_names=layouts.NAMES, latent=11, rope=4)
    )


def other_names(folder: Path) -> Path:
    even = Block(cache="expanded", cache_names=layouts.NAMES, latent=12, rope=12)
    return layouts.genai(folder, even, outputs={})


def two_sizes(folder: Path) -> Path:
    wider = Block(cache="expanded", cache_names=layouts.NAMES, latent=14)
    layouts.save(folder / "decoder_with_past_model.onnx", wider)
    return layouts.optimum(folder, EXPANDED)


def no_sizes(folder: Path) -> Path:
    source = layouts.optimum(folder, EXPANDED)
    layouts.write(source, "config.json", {"qk_rope_head_dim": True})
    return source


def components(folder: Path) -> Path:
    return layouts.exported(folder, EXPANDED, EXPANDED)


REFUSED: dict[str, tuple[Callable[[Path], Path], dict[str, Any], str]] = {
    "two widths in genai": (uneven, {}, r"would be 1 x 4, 1 x 12; ask for cache 'even'"),
    "odd in genai": (odd, {"cache": "even"}, "a row has 15 numbers"),
    "other names in genai": (other_names, {}, r"no cache 'present.0.key'"),
    "packed in genai": (layouts.genai, {"cache": "packed"}, "no cache 'past_key_values.0.key'"),
    "two sizes in optimum": (two_sizes, {}, r"caches '.key', and they would be 1 x 12, 1 x 14"),
    "no sizes in optimum": (no_sizes, {}, "has no qk_rope_head_dim"),
    "packed in optimum": (layouts.optimum, {"cache": "packed"}, "one key and one value a layer"),
    "packed in transformers": (
        lambda to: layouts.exported(to, LATENT),
        {"cache": "packed"},
        "not in the interface",
    ),
    "expanded components": (components, {}, "which the other components of the export hand over"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_caches_that_the_program_cannot_use(case: str, tmp_path: Path) -> None:
    make, options, message = REFUSED[case]
    source = make(tmp_path / "in")
    with pytest.raises(RefusedError, match=message):
        mla_opt.optimize_folder(source, tmp_path / "out", verify=False, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_weights_that_the_config_does_not_describe_any_more(tmp_path: Path) -> None:
    source = layouts.optimum(tmp_path / "in", EXPANDED)
    (source / "model.safetensors").write_bytes(b"weights")
    result = mla_opt.optimize_folder(source, tmp_path / "out", verify=False)
    (note,) = result.notes
    assert "no longer the weights in model.safetensors" in note
    assert (tmp_path / "out/model.safetensors").read_bytes() == b"weights"


# Files beside the model


def test_other_onnx_files_are_left_as_they_are(tmp_path: Path) -> None:
    source = layouts.optimum(tmp_path / "in")
    layouts.save(source / "vision.onnx", NOTHING)
    (source / "damaged.onnx").write_bytes(b"\x08no model")
    result = mla_opt.optimize_folder(source, tmp_path / "out", verify=False)
    left = {file.name: file.left for file in result.files if file.left is not None}
    assert set(left) == {"damaged.onnx", "vision.onnx"}
    assert "no attention" in (left["vision.onnx"] or "")
    for name in left:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    source = layouts.optimum(tmp_path / "in")
    (source / "model.onnx").write_bytes(b"\x08no model")
    with pytest.raises(InputError, match=r"model\.onnx: is not an ONNX model"):
        mla_opt.optimize_folder(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def shared(folder: Path, *others: Block) -> Path:
    """A model, and others whose weights are in the same file."""
    layouts.optimum(folder, data="weights.bin")
    for number, block in enumerate(others):
        layouts.save(folder / f"other{number}.onnx", block, "weights.bin")  # appended to it
    return folder


def test_data_that_another_file_uses_stays(tmp_path: Path) -> None:
    source = shared(tmp_path / "in", Block(layers=0, cache="none"))
    other = onnx.load(source / "other0.onnx", load_external_data=False)
    weight = onnx.load(source / "model.onnx", load_external_data=False).graph.initializer[0]
    other.graph.initializer.append(weight)
    (source / "other0.onnx").write_bytes(other.SerializeToString())
    mla_opt.optimize_folder(source, tmp_path / "out", verify=False)
    after = content(tmp_path / "out")
    assert after["weights.bin"] == (source / "weights.bin").read_bytes()
    assert "model.onnx.data" in after
    assert_same(LATENT, layouts.read(tmp_path / "out/model.onnx"), sizes=((2, 4, 3),))


def test_data_that_nobody_uses_any_more_goes(tmp_path: Path) -> None:
    source = shared(tmp_path / "in", LATENT)
    result = mla_opt.optimize_folder(source, tmp_path / "out", verify=False)
    assert len(result.optimized) == 2
    after = content(tmp_path / "out")
    assert "weights.bin" not in after
    assert {"model.onnx.data", "other0.onnx.data"} <= set(after)


def test_no_name_of_another_file_is_taken(tmp_path: Path) -> None:
    source = shared(tmp_path / "in", LATENT)
    (source / "model.onnx.data").write_bytes(b"something else")
    mla_opt.optimize_folder(source, tmp_path / "out", verify=False)
    after = content(tmp_path / "out")
    assert after["model.onnx.data"] == b"something else"
    assert "model.onnx.1.data" in after
    assert_same(LATENT, layouts.read(tmp_path / "out/model.onnx"), sizes=((2, 4, 3),))


# Outcomes without a folder


def test_nothing_matched(tmp_path: Path) -> None:
    source = layouts.optimum(tmp_path / "in", NOTHING)
    with pytest.raises(NothingMatchedError, match=r"model\.onnx: the model has no attention"):
        mla_opt.optimize_folder(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result = mla_opt.optimize_folder(source, tmp_path / "out", allow_unmatched=True)
    assert content(tmp_path / "out") == content(source)
    assert not result.optimized


def test_a_failed_verification_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mla_opt import api

    optimize, calls = api.optimize, []

    def second_fails(model: Any, **options: Any) -> Any:
        result = optimize(model, verify=False)
        calls.append(result)
        if len(calls) == 2:
            raise VerificationError("computes something else", result.report)
        return result

    monkeypatch.setattr(api, "optimize", second_fails)
    source = layouts.exported(tmp_path / "in", LATENT, LATENT)
    with pytest.raises(VerificationError, match=r"decode\.onnx: computes") as error:
        mla_opt.optimize_folder(source, tmp_path / "out")
    assert error.value.report is not None
    assert error.value.report.input.path == str(source / "decode.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
