"""Folders of weights without a graph: refused, with the command that makes the graph."""

from __future__ import annotations

import shlex
from fnmatch import fnmatch

from mla_opt.errors import InputError
from mla_opt.folders.tree import Tree

GGUF = ("*.gguf",)
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def check_no_checkpoint(tree: Tree) -> None:
    """Check that a folder without an ONNX model is no checkpoint that could be exported.

    Raises:
        InputError: it is one; the message has the command.
    """
    if tree.models():
        return
    where, target = str(tree.folder), f"{tree.folder}-onnx"
    if found := held(tree, WEIGHTS):
        raise InputError(
            f"{where}: holds weights ({found[0]}) and no ONNX model; export it first:"
            f" {command(where, target)} (pip install optimum-onnx), or, where optimum does not know"
            " the model, as the README says under 'Export a model'"
        )
    if found := held(tree, GGUF):
        raise InputError(
            f"{where}: holds a GGUF model ({found[0]}), which has no graph to rewrite; take the"
            f" safetensors that it was made from, in a folder MODEL: {command('MODEL', target)}"
            " (pip install optimum-onnx)"
        )


def held(tree: Tree, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the files whose last part is like one of the patterns."""
    lasts = ((name, name.rpartition("/")[2].lower()) for name in tree.files)
    return tuple(name for name, last in lasts if any(fnmatch(last, each) for each in patterns))


def command(source: str, target: str) -> str:
    """The command that exports a checkpoint."""
    task = "text-generation-with-past"
    return f"optimum-cli export onnx --model {shlex.quote(source)} --task {task} " + shlex.quote(
        target
    )
