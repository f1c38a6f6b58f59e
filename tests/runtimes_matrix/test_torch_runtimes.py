"""Portable programs in runtimes that read what torch.export makes.

They take aten operators alone, so all of this is absorbed. For ExecuTorch one sequence and bounded
lengths: XNNPACK does not run the original either where the number of sequences changes. For LiteRT
all sizes are fixed.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import mla_opt
from tests.exports.cache import ROOT
from tests.integrations.packages import installed
from tests.runtimes_matrix.forms import CALLS, FORMS, TOLERANCE, Sizes
from tests.runtimes_matrix.test_torch import LAYERS, Model, arguments

torch = pytest.importorskip("torch")

LITERT = Path(__file__).with_name("run_litert.py")
EXECUTORCH, LITERT_TORCH = "executorch==1.5.1", "litert-torch==0.10.0"
MOST = 256
ONE_SEQUENCE = (*(sizes for sizes in CALLS if sizes.batch == 1), Sizes(1, 100, 100))


class NewRows(Model):
    """Returns new rows only: who calls it joins them with the cache, without a copy of that."""

    def forward(self, x: Any, mask: Any, *past: Any) -> tuple[Any, ...]:
        output, *caches = super().forward(x, mask, *past)
        return (output, *(rows[:, :, -x.shape[1] :] for rows in caches))


def exported(kind: type[Model], *, bounded: bool) -> Any:
    dim = torch.export.Dim.AUTO
    new, past, total = dim, dim, dim
    batch: dict[int, Any] = {0: dim}
    if bounded:
        new, past, total = dim(min=1, max=MOST), dim(min=0, max=MOST), dim(min=1, max=2 * MOST)
        batch = {}
    rows = {**batch, 2: past}
    shapes = ({**batch, 1: new}, {**batch, 2: dim, 3: total}, (rows,) * 2 * LAYERS)
    example = arguments(Sizes(1 if bounded else 2, 5, 11))
    return torch.export.export(kind().eval(), example, dynamic_shapes=shapes)


def portable(program: Any, form: str = "absorbed") -> Any:
    return mla_opt.optimize(program, target="portable", verify=False, **FORMS[form]).model


@pytest.mark.other_runtimes
def test_openvino_reads_the_program() -> None:
    openvino = pytest.importorskip("openvino")
    converted = openvino.convert_model(portable(exported(Model, bounded=False)))
    # The default on some machines is a 16-bit inference precision.
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    original = Model()
    for sizes in CALLS:
        given = arguments(sizes)
        with torch.no_grad():
            wanted = original(*given)
        got = compiled([each.numpy() for each in given])
        for place, right in enumerate(wanted):
            error = (torch.from_numpy(got[place]) - right).abs().max() / right.std()
            assert error < TOLERANCE, (sizes, place, float(error))


@pytest.mark.other_runtimes
def test_executorch(tmp_path: Path) -> None:
    python = installed(tmp_path / "env", EXECUTORCH)
    command = [python, "-m", "tests.runtimes_matrix.run_executorch"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads(done.stdout.splitlines()[-1])
    assert len(errors) == 4
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.other_runtimes
def test_litert(tmp_path: Path) -> None:
    python = installed(tmp_path / "env", LITERT_TORCH)
    given = arguments(Sizes(1, 5, 11))
    program = torch.export.export(Model().eval(), given)
    torch.export.save(portable(program), tmp_path / "program.pt2")
    with torch.no_grad():
        torch.save((given, Model()(*given)), tmp_path / "call.pt")
    done = subprocess.run([python, LITERT, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout.split()[-1]) < TOLERANCE
