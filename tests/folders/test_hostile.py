"""Folders that are damaged, or made to harm: refused in one line, and nothing is written."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

import mla_opt
from mla_opt.errors import InputError
from mla_opt.folders import tree
from tests.folders import layouts
from tests.folders.layouts import LATENT, content


def link_out(folder: Path) -> None:
    (folder.parent / "secret").write_text("secret")
    (folder / "vocab.txt").symlink_to("../secret")


def link_to_a_folder(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "again").symlink_to("inner")


def broken_link(folder: Path) -> None:
    (folder / "vocab.txt").symlink_to("nothing")


def circle(folder: Path) -> None:
    (folder / "vocab.txt").symlink_to("vocab.txt")


def hard_link(folder: Path) -> None:
    (folder.parent / "secret").write_text("secret")
    (folder / "vocab.txt").hardlink_to(folder.parent / "secret")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "vocab.txt")


def control_characters(folder: Path) -> None:
    (folder / "a\x1b[31mb").write_text("")


def no_text(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe")).write_text("")


def no_json(folder: Path) -> None:
    (folder / "genai_config.json").write_text("{")


def no_object(folder: Path) -> None:
    (folder / "genai_config.json").write_text("[1]")


def deep(folder: Path) -> None:
    (folder / "genai_config.json").write_text('{"a":' * 500 + "1" + "}" * 500)


def deeper(folder: Path) -> None:
    (folder / "genai_config.json").write_text("[" * 100_000)


def elsewhere(folder: Path) -> None:
    layouts.write(folder, "genai_config.json", {"model": {"decoder": {"filename": "../m.onnx"}}})


def absolute(folder: Path) -> None:
    layouts.write(folder, "genai_config.json", {"model": {"decoder": {"filename": "/m.onnx"}}})


def no_file(folder: Path) -> None:
    layouts.write(folder, "genai_config.json", {"model": "model.onnx"})


def no_component(folder: Path) -> None:
    broken = {"export_format": "onnx", "components": {"model": 3}}
    layouts.write(folder, "export.json", broken)


def another_format(folder: Path) -> None:
    layouts.exported(folder, LATENT, form="dynamo")


REFUSED: dict[Callable[[Path], None], str] = {
    link_out: "'vocab.txt' is a link out of the folder",
    link_to_a_folder: "'again' is a link to a folder",
    broken_link: "'vocab.txt' cannot be read",
    circle: "'vocab.txt' cannot be read",
    hard_link: "'vocab.txt' has several hard links",
    pipe: "'vocab.txt' is not a regular file",
    control_characters: r"has control characters or is no text: 'a\\x1b",
    no_text: "has control characters or is no text",
    no_json: "is no JSON",
    no_object: "is no JSON object",
    deep: "more than 64 deep",
    deeper: "is no JSON",
    elsewhere: r"names the file '\.\./m\.onnx', which is not in the folder",
    absolute: r"names the file '/m\.onnx', which is not in the folder",
    no_file: "names no ONNX file under 'model'",
    no_component: "component 'model' names no file",
    another_format: "the export is for 'dynamo'",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda each: each.__name__)
def test_refused(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    source = layouts.optimum(tmp_path / "in")
    spoil(source)
    with pytest.raises(InputError, match=REFUSED[spoil]) as error:
        mla_opt.optimize_folder(source, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(source))
    assert {path.name for path in tmp_path.iterdir()} <= {"in", "secret"}


@pytest.mark.parametrize("target", ["../../refs/main", "../../../secret", "/etc/hostname"])
def test_links_of_a_snapshot_lead_to_blobs_only(target: str, tmp_path: Path) -> None:
    snapshot = layouts.hugging_face_cache(tmp_path)
    (snapshot / "vocab.txt").symlink_to(target)
    with pytest.raises(InputError, match=r"'vocab\.txt' is a link out of the folder"):
        mla_opt.optimize_folder(snapshot, tmp_path / "out")


def test_links_inside_become_files(tmp_path: Path) -> None:
    source = layouts.optimum(tmp_path / "in")
    (source / "sub").mkdir()
    (source / "sub/vocab.txt").symlink_to("../tokenizer.json")
    mla_opt.optimize_folder(source, tmp_path / "out", verify=False)
    assert content(tmp_path / "out")["sub/vocab.txt"] == layouts.TOKENIZER


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = layouts.optimum(tmp_path / "in")
    monkeypatch.setattr(tree, "MOST_ENTRIES", 3)
    with pytest.raises(InputError, match="holds more than 3 files"):
        mla_opt.optimize_folder(source, tmp_path / "out")


# Folders of no kind


def test_no_folder(tmp_path: Path) -> None:
    for name in ("none", layouts.save(tmp_path / "m.onnx").name):
        with pytest.raises(InputError, match="is no folder"):
            mla_opt.optimize_folder(tmp_path / name, tmp_path / "out")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="holds no ONNX model"):
        mla_opt.optimize_folder(tmp_path / "in", tmp_path / "out")


def test_a_repository_of_the_hugging_face_cache(tmp_path: Path) -> None:
    snapshot = layouts.hugging_face_cache(tmp_path)
    with pytest.raises(InputError, match=f"give a snapshot of it, such as {snapshot}"):
        mla_opt.optimize_folder(snapshot.parent.parent, tmp_path / "out")


def test_two_files_and_nothing_that_says_which(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        layouts.save(tmp_path / "in" / name)
    with pytest.raises(InputError, match=r"holds 2 ONNX files .*give one of the files"):
        mla_opt.optimize_folder(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "from_here"),
    [
        ("model-00001-of-00002.safetensors", True),
        ("pytorch_model.bin", True),
        ("model-Q4_K.gguf", False),
    ],
)
def test_a_checkpoint_gets_the_command_that_exports_it(
    name: str, from_here: bool, tmp_path: Path
) -> None:
    source = tmp_path / "my model"
    source.mkdir()
    (source / name).write_bytes(b"weights")
    layouts.write(source, "config.json", layouts.config_of(LATENT))
    with pytest.raises(InputError) as error:
        mla_opt.optimize_folder(source, tmp_path / "out")
    said = str(error.value)
    assert name in said
    model = shlex.quote(str(source)) if from_here else "MODEL"
    target = shlex.quote(f"{source}-onnx")
    assert (
        f"optimum-cli export onnx --model {model} --task text-generation-with-past {target}" in said
    )
