"""The folder of a bundle: what is in it, that it is whole or absent, and what is refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import onnx
import pytest

import mla_opt
from mla_opt.bundles import BundleManifest, BundleOptions, export, export_bundle, read_bundle
from mla_opt.bundles.description import _rows
from mla_opt.bundles.header import header_text
from mla_opt.bundles.schema import BUNDLE
from mla_opt.engines.manifest import read_manifest
from mla_opt.errors import InputError, KernelUnavailableError
from mla_opt.files.model_io import write_model
from mla_opt.kernels.library import kernel_library
from mla_opt.kernels.trust import is_known
from mla_opt.models import demo_model
from tests.bundles.conftest import ROWS
from tests.cli.conftest import run  # noqa: F401 (a fixture)
from tests.end_to_end.command import files
from tests.engines.token_model import token_model
from tests.exports.cache import kept_export
from tests.graphs.latent_block import Block, build

FILES = {
    "README.md",
    "SHA256SUMS",
    "generate.cpp",
    "generate.py",
    kernel_library().name,
    "manifest.json",
    "model.h",
    "model.onnx",
}


def test_what_is_in_it(made):
    manifest = read_bundle(made)
    content = json.loads((made / "manifest.json").read_text())
    jsonschema.validate(content, BUNDLE.load())
    assert BundleManifest.from_json(manifest.to_json()) == manifest
    assert {path.name for path in made.iterdir()} == FILES
    assert (manifest.rows, manifest.vocabulary, manifest.verified) == (ROWS, 112, True)
    (first, second) = ((each.dtype, each.shape, each.bytes) for each in manifest.caches)
    assert first == second == ("float32", (1, 1, ROWS, 80), ROWS * 80 * 4)
    assert [each.name for each in manifest.layers] == ["layers.0.self_attn", "layers.1.self_attn"]
    library = manifest.library.file
    assert (made / library.name).read_bytes() == kernel_library().read_bytes()
    assert is_known(library.sha256)
    onnx.checker.check_model(str(made / "model.onnx"), full_check=True)


def test_the_hashes_are_those_of_the_files(made):
    done = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=made, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = {line.split(":")[0] for line in done.stdout.splitlines()}
    assert told == FILES - {"SHA256SUMS"}


def test_names_that_cpp_would_read_otherwise(made):
    manifest = read_bundle(made)
    text = manifest.to_json().replace("past.0.latent", 'a?\\"\\\\é')
    header = header_text(BundleManifest.from_json(text))
    assert '{"a\\077\\042\\134\\303\\251", "present.0.latent",' in header


# Whole or absent


@pytest.fixture
def bundled(tmp_path):
    def make(source=None, **options) -> Path:
        options = {"verify": False, **options}
        export_bundle(source or demo_model(), tmp_path / "out", BundleOptions(**options))
        return tmp_path / "out"

    return make


def test_replaced_by_force_only(bundled, tmp_path):
    first = files(bundled(rows=16))
    with pytest.raises(InputError, match="is there already; give another folder, or --force"):
        bundled(rows=32)
    assert files(tmp_path / "out") == first
    assert read_bundle(bundled(rows=32, force=True)).rows == 32
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_folders_are_not_replaced(bundled, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letters.txt").write_text("dear")
    with pytest.raises(InputError, match="is there and is no export"):
        bundled(force=True)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(InputError, match="is a link"):
        export_bundle(demo_model(), tmp_path / "link")
    with pytest.raises(InputError, match="there is no folder"):
        export_bundle(demo_model(), tmp_path / "none" / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["letters.txt"]


def test_a_folder_that_holds_the_source_is_not_replaced(bundled, tmp_path):
    folder = bundled(rows=16)
    before = files(folder)
    with pytest.raises(InputError, match="holds the input"):
        export_bundle(folder / "model.onnx", folder, BundleOptions(force=True))
    assert files(folder) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_what_was_there(bundled, tmp_path, monkeypatch, error):
    before = files(bundled(rows=16))

    def full(manifest):
        raise error

    monkeypatch.setattr(export, "readme_text", full)
    with pytest.raises((InputError, KeyboardInterrupt)):
        bundled(rows=32, force=True)
    assert files(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Models that are optimized already


def optimized(path: Path, **options) -> Path:
    write_model(mla_opt.optimize(demo_model(), verify=False, **options).model, path)
    return path


def test_buffers_are_taken_as_they_are(bundled, tmp_path):
    source = optimized(tmp_path / "m.onnx", cache="static:24")
    manifest = read_bundle(bundled(source, verify=True))
    assert (manifest.rows, manifest.verified) == (24, False)
    assert mla_opt.inspect(tmp_path / "out" / "model.onnx").operators
    with pytest.raises(InputError, match="has buffers of 24 rows, and is taken as it is: leave"):
        bundled(source, rows=32, force=True)
    with pytest.raises(InputError, match=r"leave the type of the caches \(int8\) out"):
        bundled(source, cache_type="int8", force=True)


def test_buffers_of_any_size_get_one(bundled, tmp_path):
    source = optimized(tmp_path / "m.onnx", cache="static")
    assert read_bundle(bundled(source, rows=40)).rows == 40
    assert read_bundle(bundled(source, force=True)).rows == 4096


@pytest.mark.parametrize("cache", ["keep", "packed"])
def test_caches_that_grow_are_refused(bundled, tmp_path, cache):
    source = optimized(tmp_path / "m.onnx", cache=cache)
    with pytest.raises(InputError, match=r"caches grow with every call.*--cache static:ROWS"):
        bundled(source)
    assert not (tmp_path / "out").exists()


# Refused


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"B": 2}, "takes 2 sequences in every call, and the loaders run one"),
        ({"S": 3}, "its number of new tokens is fixed"),
    ],
)
def test_sizes_that_the_loaders_cannot_run(bundled, tmp_path, sizes, message):
    source = tmp_path / "m.onnx"
    proto = onnx.load(token_model(source, heads=2, hidden=32, latent=16, rope=8, nope=8, value=8))
    for value in proto.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    onnx.save(proto, source)
    with pytest.raises(InputError, match=message):
        bundled(source, rows=32)


def test_a_model_that_keeps_more_than_rows(bundled, tmp_path):
    """The second layer is none that mla-opt can prove: its cache grows on."""

    def odd(tape, value):
        return tape("Tanh", value) if tape.layer == 1 else value

    source = tmp_path / "m.onnx"
    small = {"heads": 2, "hidden": 32, "latent": 16, "rope": 8, "nope": 8, "value": 8}
    token_model(source, layers=2, edits={"value": odd}, **small)
    with pytest.raises(InputError, match=r"also keeps past\.1\..*, which is no cache of latent"):
        bundled(source, rows=32)


def test_caches_that_cannot_be_buffers(bundled, tmp_path):
    source = kept_export("mistral_large4-dynamo-opset18-sdpa-cache")
    with pytest.raises(mla_opt.RefusedError, match=r"some of these cannot be: layers\.1"):
        bundled(source, rows=32)
    assert not (tmp_path / "out").exists()


def test_what_is_no_model_for_it(bundled, tmp_path):
    program = tmp_path / "m.pt2"
    program.write_bytes(b"program")
    with pytest.raises(InputError, match="is a PyTorch program, and a bundle for ONNX Runtime"):
        bundled(program)
    with pytest.raises(InputError, match="no such file"):
        bundled(tmp_path / "none.onnx")
    source = tmp_path / "none_latent.onnx"
    onnx.save(build(Block(layers=0)), source)
    with pytest.raises(mla_opt.NothingMatchedError):
        bundled(source)


def test_kernels_that_were_not_built(bundled, monkeypatch):
    def missing():
        raise KernelUnavailableError("the kernel library was not built: install a C++ compiler")

    monkeypatch.setattr(export, "kernel_library", missing)
    with pytest.raises(InputError, match=r"was not built.*with standard operators only"):
        bundled()


# Manifests


def test_manifests_of_the_other_kind(made, tmp_path):
    with pytest.raises(InputError, match="holds a model for onnxruntime, and no engines"):
        read_manifest(made)
    folder = tmp_path / "engines"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"schema_version": 2}')
    with pytest.raises(InputError, match="holds engines, and no bundle"):
        read_bundle(folder)
    (folder / "manifest.json").write_text('{"kind": "tea"}')
    with pytest.raises(InputError, match="is for 'tea', which this release does not know"):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/b", "..", "", "a\\b"])
def test_files_elsewhere(made, name):
    text = (made / "manifest.json").read_text()
    with pytest.raises(InputError, match="is no name of a file in the folder"):
        BundleManifest.from_json(text.replace('"model.onnx"', json.dumps(name)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"schema_version": 2', '"schema_version": 9', "has schema version 9"),
        (f'"rows": {ROWS}', '"rows": "many"', "is not of the right type"),
        ('"role": "mask"', '"role": "hat"', "'hat' is none of"),
        ("{", "", "is no JSON"),
    ],
)
def test_damaged_manifests(made, old, new, message):
    text = (made / "manifest.json").read_text()
    assert old in text
    with pytest.raises(InputError, match=message):
        BundleManifest.from_json(text.replace(old, new, 1))


# The command


def test_the_command(run, tmp_path):  # noqa: F811
    arguments = ("export", demo_model(), "--to", "onnxruntime", "-o", tmp_path / "out")
    done = run(*arguments, "--rows", "1k")
    assert done.exit_code == 0, done.stderr
    assert "2 latent attentions on caches of 1024 rows, verified; its README.md" in done.stdout
    more = ("--no-verify", "--force", "--cache-type", "bfloat16")
    assert "not verified" in run(*arguments, *more).stdout
    manifest = read_bundle(tmp_path / "out")
    assert {(each.dtype, each.shape[2]) for each in manifest.caches} == {("bfloat16", 4096)}
    assert run(*arguments).exit_code == 2
    assert run(*arguments, "--rows", "9", "--no-verify", "--force", "--quiet").stdout == ""
    assert read_bundle(tmp_path / "out").rows == 9
    told = run(*arguments, "--force", "--prompt", "8").stderr
    assert "--prompt does nothing with --to onnxruntime; it is for --to tensorrt. Leave" in told
    told = run(*arguments, "--force", "--name", "x").stderr
    assert "it is for --to triton-server" in told


def test_buffers_of_two_sizes_are_refused():
    """Nothing of ours writes such a model; others may."""

    def interface(*rows):
        ports = [SimpleNamespace(sizes=("B", 1, each, 8)) for each in rows]
        states = [SimpleNamespace(input=port, growth_axis=2) for port in ports]
        return SimpleNamespace(states=states)

    assert _rows(interface(64, 64), "model", None) == 64
    with pytest.raises(InputError, match="buffers of 64 and 128 rows"):
        _rows(interface(64, 128), "model", None)
