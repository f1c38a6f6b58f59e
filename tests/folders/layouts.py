"""Folders in each of the layouts, made by hand around a small model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from tests.graphs.latent_block import Block, build

#: One layer whose cache is the latent rows: its interface stays. Another that caches expanded keys
#: and values: its interface changes. Both name caches as optimum and onnxruntime-genai do.
NAMES = ("_key_values.{0}.key", "_key_values.{0}.value")
LATENT = Block(cache="latent", cache_names=NAMES)
EXPANDED = Block(cache="expanded", cache_names=NAMES)
NOTHING = Block(layers=0)

TOKENIZER = b'{"tokens": "\xc3\xa4"}  \n'


def content(folder: Path) -> dict[str, bytes]:
    """Every file by its name below the folder; links must be none."""
    files = [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
    assert not any(path.is_symlink() for path in files)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def save(path: Path, block: Block = LATENT, data: str | None = None) -> Path:
    """Save a model; its weights in a file of this name, if one is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if data is None:
        path.write_bytes(build(block).SerializeToString())
    else:
        onnx.save_model(
            build(block), path, save_as_external_data=True, location=data, size_threshold=256
        )
    return path


def read(path: Path) -> ir.Model:
    """A model with all that is in its data files."""
    return ir.from_proto(onnx.load(path))


def write(folder: Path, name: str, value: object) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def config_of(block: Block) -> dict[str, Any]:
    """What transformers writes of such a model, as far as it matters."""
    return {
        "model_type": "deepseek_v3",
        "num_attention_heads": block.heads,
        "num_key_value_heads": block.heads,
        "qk_nope_head_dim": block.nope,
        "qk_rope_head_dim": block.rope,
        "qk_head_dim": block.nope + block.rope,
        "v_head_dim": block.value,
        "kv_lora_rank": block.latent,
    }


def optimum(
    folder: Path, block: Block = LATENT, *, below: str = "", data: str | None = "model.onnx_data"
) -> Path:
    """As optimum writes it; with ``below`` onnx/ as for transformers.js."""
    save(folder / below / "model.onnx", block, data)
    write(folder, "config.json", config_of(block))
    write(folder, "generation_config.json", {"use_cache": True})
    (folder / "tokenizer.json").write_bytes(TOKENIZER)
    return folder


def exported(folder: Path, *blocks: Block, form: str = "onnx") -> Path:
    """As transformers' ``ExportedModel.save_pretrained`` writes it."""
    names = ("model",) if len(blocks) == 1 else ("prefill", "decode")
    for name, block in zip(names, blocks):
        save(folder / f"{name}.onnx", block, f"{name}.onnx.data")
    components = {name: {"file": f"{name}.onnx", "metadata": {}} for name in names}
    manifest = {"schema_version": 1, "export_format": form, "components": components}
    write(folder, "export.json", manifest)
    write(folder, "config.json", config_of(blocks[0]))
    return folder


def genai(folder: Path, block: Block = LATENT, **decoder: Any) -> Path:
    """As onnxruntime-genai reads it."""
    save(folder / "model.onnx", block)
    described = {
        "filename": "model.onnx",
        "head_size": block.nope + block.rope,
        "num_key_value_heads": block.heads,
        "num_hidden_layers": block.layers,
        "outputs": {
            "present_key_names": "present_key_values.%d.key",
            "present_value_names": "present_key_values.%d.value",
        },
    }
    write(folder, "genai_config.json", {"model": {"decoder": {**described, **decoder}}})
    (folder / "tokenizer.json").write_bytes(TOKENIZER)
    return folder


def hugging_face_cache(root: Path, block: Block = LATENT) -> Path:
    """A folder of optimum as the Hugging Face cache keeps it: a snapshot of links to blobs."""
    repository = root / "models--org--name"
    snapshot, blobs = repository / "snapshots" / "0123abcd", repository / "blobs"
    blobs.mkdir(parents=True)
    optimum(snapshot, block, below="onnx")
    files = [path for path in sorted(snapshot.rglob("*")) if path.is_file()]
    for number, path in enumerate(files):
        path.rename(blobs / f"sha{number}")
        up = "../" * len(path.relative_to(repository).parents)
        path.symlink_to(f"{up[3:]}blobs/sha{number}")
    return snapshot
