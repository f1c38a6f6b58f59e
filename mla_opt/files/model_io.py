"""Models in and out of files, without trusting the one or endangering the other.

:func:`read_model` takes a file that may be damaged or hostile and either gives a model or says in
one line why not. :func:`write_model` makes a file appear whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from mla_opt.files.hashed import sha256
from mla_opt.files.order import bodies, check_order
from mla_opt.files.reading import (
    MIN_OPSET,
    check_input,
    external_files,
    from_proto,
    read_model,
    referred_files,
)
from mla_opt.files.sharing import check_sharing
from mla_opt.files.writing import (
    check_no_input,
    check_output,
    check_parent,
    check_replaced,
    clear_up,
    data_path,
    is_own_data,
    one_line_errors,
    whole_file,
    write_hashed,
    write_model,
    write_text,
)
from mla_opt.report.report import ModelFile

__all__ = [
    "MIN_OPSET",
    "check_input",
    "check_no_input",
    "check_order",
    "check_output",
    "check_parent",
    "check_replaced",
    "check_sharing",
    "clear_up",
    "data_path",
    "default_output",
    "describe",
    "external_files",
    "from_proto",
    "is_own_data",
    "model_files",
    "one_line_errors",
    "read_model",
    "referred_files",
    "seen_from",
    "sha256",
    "unknown_operators",
    "whole_file",
    "write_hashed",
    "write_model",
    "write_text",
]

# Domains whose operators ONNX Runtime brings, besides ONNX's own.
_RUNTIME_DOMAINS = ("com.microsoft", "com.microsoft.experimental", "com.ms.internal.nhwc")


def default_output(path: str | Path) -> Path:
    """Return where the optimized model goes by default: ``dir/m.onnx`` gives ``dir/m.mla.onnx``.

    A program, ``m.pt2``, gives a program; what is named otherwise gives an ONNX file.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in (".onnx", ".pt2"):
        return path.with_name(f"{path.stem}.mla{suffix}")
    return path.with_name(f"{path.name}.mla.onnx")


def model_files(path: str | Path, model: ir.Model) -> tuple[Path, ...]:
    """Return the files that make up the model read from ``path``: itself, then its data by name."""
    return (Path(path), *external_files(model))


def describe(files: Sequence[Path], model: ir.Model, digest: str | None = None) -> ModelFile:
    """Return what a report says of a model on disk.

    Args:
        files: the model file, then its external data (:func:`model_files`, :func:`write_model`).
        model: what is in them.
        digest: their hash (:func:`sha256`), where it is known.
    """
    return ModelFile(
        path=str(files[0]),
        sha256=digest or sha256(files),
        bytes=sum(file.stat().st_size for file in files),
        opset_imports=dict(model.opset_imports),
        ir_version=model.ir_version,
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        external_data=tuple(seen_from(files[0].parent, file) for file in files[1:]),
    )


def seen_from(folder: Path, file: Path) -> str:
    """A data file as seen from its model's folder; its name alone where it is in no part of it."""
    absolute, around = file.absolute(), folder.absolute()
    inside = absolute.is_relative_to(around)
    return absolute.relative_to(around).as_posix() if inside else file.name


def unknown_operators(model: ir.Model) -> tuple[str, ...]:
    """Return the operators, as ``domain::name``, that neither a standard nor the model defines.

    Such a model can be optimized as long as no step has to run or understand these nodes.
    """
    known = {schema.domain for schema in onnx.defs.get_all_schemas()}
    known |= {"", "ai.onnx", *_RUNTIME_DOMAINS}
    found = {
        f"{node.domain}::{node.op_type}"
        for body in bodies(model)
        for node in ir.traversal.RecursiveGraphIterator(body)
        if node.domain not in known and node.op_identifier() not in model.functions
    }
    return tuple(sorted(found))
