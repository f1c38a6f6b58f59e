"""The kinds of folders that are known: the first one that knows its own files decides.

A new kind is a file with a `Kind` in it, and a row here.
"""

from __future__ import annotations

from mla_opt.errors import InputError
from mla_opt.folders import exported_model, onnxruntime_genai, optimum, single_model
from mla_opt.folders.checkpoints import check_no_checkpoint
from mla_opt.folders.kind import Kind
from mla_opt.folders.tree import Tree

KINDS: tuple[Kind, ...] = (
    onnxruntime_genai.KIND,
    exported_model.KIND,
    optimum.KIND,
    single_model.KIND,
)


def recognize(tree: Tree) -> tuple[Kind, tuple[str, ...]]:
    """Return the kind of a folder, and the ONNX files that its program opens.

    Raises:
        InputError: it is of no kind that is known, or cannot be used.
    """
    _check_no_repository(tree)
    for kind in KINDS:
        names = kind.opened(tree)
        if names is not None:
            return kind, names
    check_no_checkpoint(tree)
    models = tree.models()
    if not models:
        raise InputError(f"{tree.folder}: holds no ONNX model; give a folder that does")
    raise InputError(
        f"{tree.folder}: holds {len(models)} ONNX files ({', '.join(models[:3])}, ...), and no"
        " config.json, export.json or genai_config.json that says which is the model; give one of"
        " the files"
    )


def _check_no_repository(tree: Tree) -> None:
    """Raise `InputError` for all snapshots of a Hugging Face cache at once."""
    found = next((name for name in tree.files if name.startswith("snapshots/")), None)
    if found is not None and tree.folder.absolute().name.startswith("models--"):
        snapshot = tree.path("/".join(found.split("/")[:2]))
        raise InputError(
            f"{tree.folder}: is a whole repository of the Hugging Face cache; give a snapshot of"
            f" it, such as {snapshot}"
        )
