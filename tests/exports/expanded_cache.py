"""Exports from transformers 4.57, which expands keys and values first and caches them expanded.

    past.{i}.keys [B,H,P,nope+rope]    past.{i}.values [B,H,P,v]

Optimum calls them past_key_values.{i}.key and .value. That release cannot share an environment with
the current one, so this module is run by an interpreter of its own, which the variable
`MLA_OPT_TRANSFORMERS_457_PYTHON` names:

    python -m tests.exports.expanded_cache export SPEC model.onnx
    python -m tests.exports.expanded_cache program SPEC model.pt2
    python -m tests.exports.expanded_cache run SPEC feeds.npz outputs.npz

and must therefore import nothing that only newer releases have.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.exports.spec import ExportSpec

VARIABLE = "MLA_OPT_TRANSFORMERS_457_PYTHON"
#: Both layers dense: that release has no experts that export. Optimum patches its own, so there one
#: layer stays sparse.
DENSE = {"first_k_dense_replace": 2}


def interpreter() -> str:
    """The Python that has transformers 4.57.

    Raises:
        LookupError: if none is named; tests skip on it.
    """
    python = os.environ.get(VARIABLE)
    if not python:
        raise LookupError(
            f"{VARIABLE} names no Python with requirements-transformers-4.57.txt installed"
        )
    return python


def flat_model(spec: ExportSpec) -> Any:
    """The wrapped model of a spec, with the same seeded weights as in the current release."""
    from tests.exports import exporters

    overrides = DENSE if spec.exporter == "dynamo457" else {}
    return exporters.flat_model(spec, **overrides)


def export(spec: ExportSpec, path: Path) -> None:
    """Write the ONNX file of a spec; to be called under transformers 4.57."""
    import torch

    from tests.exports import exporters
    from tests.exports.families import FAMILIES
    from tests.exports.patches import patches_for

    with torch.no_grad(), patches_for(FAMILIES[spec.family].model_type):
        if spec.exporter == "optimum457":
            export_optimum(spec, path)
        else:
            exporters.export_dynamo(spec, path, flat_model(spec))


def export_optimum(spec: ExportSpec, path: Path) -> None:
    """`optimum-cli export onnx`, by its Python name."""
    from optimum.exporters.onnx import main_export

    task = "text-generation-with-past" if spec.cache else "text-generation"
    with tempfile.TemporaryDirectory() as folder:
        flat_model(spec).model.save_pretrained(folder)
        written = Path(folder, "onnx")
        main_export(folder, written, task=task, opset=spec.opset, do_validation=False)
        path.write_bytes((written / "model.onnx").read_bytes())


def export_program(spec: ExportSpec, path: Path) -> None:
    """Write the program of a spec, in functional form.

    As exported, it cannot be saved: the mask of this release is made by a function that is mapped
    over indices, which torch.export keeps in a form that it does not write.
    """
    import torch

    from tests.programs.exporting import exported

    program = exported(flat_model(spec), spec.family, spec.dtype)
    torch.export.save(program.run_decompositions({}), path)


def run(spec: ExportSpec, feeds: Path, outputs: Path) -> None:
    """Run the model in PyTorch on flat feeds from a file."""
    import numpy as np

    from tests.exports.flat import run_flat

    with np.load(feeds) as file:
        results = run_flat(flat_model(spec), dict(file))
    np.savez(outputs, **results)


def main(arguments: list[str]) -> int:
    """`export SPEC PATH`, `program SPEC PATH` or `run SPEC FEEDS OUTPUTS`."""
    from tests.exports.cache import failing_on_one_line

    command = {"export": export, "program": export_program, "run": run}[arguments[0]]
    paths = map(Path, arguments[2:])
    return failing_on_one_line(lambda: command(ExportSpec.from_json(arguments[1]), *paths))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
