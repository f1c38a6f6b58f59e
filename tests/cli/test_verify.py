"""``mla-opt verify`` on real models that do and do not compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from tests.cli.conftest import Run
from tests.files.small_models import proto, save


def changed(path: Path, factor: float) -> Path:
    """Save the small model with its weight multiplied by ``factor``."""
    model = proto()
    weight = numpy_helper.to_array(model.graph.initializer[0]) * np.float32(factor)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    return save(path, model)


def test_equal_models(run: Run, model: Path) -> None:
    result = run("verify", model, changed(model.with_name("o.onnx"), 1.0))
    assert result.exit_code == 0, result.stderr
    assert "verification passed" in result.stdout
    assert "\x1b" not in result.stdout


def test_different_models(run: Run, model: Path) -> None:
    result = run("verify", model, changed(model.with_name("o.onnx"), 1.5))
    assert result.exit_code == 4
    assert result.stderr.startswith("error: verification failed: y: ")
    assert result.stderr.count("\n") == 1
    assert "FAILED" in result.stdout


def test_quiet_still_fails(run: Run, model: Path) -> None:
    result = run("verify", model, changed(model.with_name("o.onnx"), 1.5), "--quiet")
    assert (result.exit_code, result.stdout) == (4, "")


def test_different_interfaces(run: Run, model: Path) -> None:
    other: Any = proto()
    other.graph.input[0].name = other.graph.node[0].input[0] = "z"
    result = run("verify", model, save(model.with_name("o.onnx"), other))
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


def test_two_models_or_a_report(run: Run, model: Path) -> None:
    for arguments in ((), (model,), (model, "--from-report", model)):
        result = run("verify", *arguments)
        assert result.exit_code == 2
        assert "give ORIGINAL and OPTIMIZED, or --from-report" in result.stderr
    assert run("verify", "--from-report", model, "--seed", "3").exit_code == 2


@pytest.mark.parametrize("missing", [0, 1])
def test_missing_file(run: Run, model: Path, missing: int) -> None:
    paths = [model, model]
    paths[missing] = model.with_name("none.onnx")
    result = run("verify", *paths)
    assert result.exit_code == 2
    assert result.stderr == f"error: {paths[missing]}: no such file; check the path\n"
