"""Saved programs load in processes that have imported PyTorch and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mla_opt.operator import Signature
from mla_opt.operator.torch.autoload import register
from tests.operator.cases import operands
from tests.torch_operator.calls import OPERATOR, attributes, positional

SIGNATURE = Signature(causal=True)

LOADED = """
import sys
{first}
import torch
known = set(sys.modules)
module = torch.export.load(sys.argv[1]).module()
torch.save(module(*torch.load(sys.argv[2])), sys.argv[3])
print(sorted({{"onnx", "onnx_ir", "mla_opt.operator.torch.call"}} & known))
"""


class Calling(torch.nn.Module):
    def forward(self, query: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = OPERATOR(query, latent, **attributes(SIGNATURE))[0]
        return output


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    given = tuple(x for x in positional(operands(SIGNATURE)) if x is not None)
    torch.export.save(torch.export.export(Calling(), given), folder / "model.pt2")
    torch.save(given, folder / "given.pt")
    torch.save(Calling()(*given), folder / "expected.pt")
    return folder


@pytest.mark.parametrize(
    ("first", "autoload"),
    [("import mla_opt", "1"), ("import mla_opt.operator.torch.op", "0")],
    ids=["the package alone", "extensions turned off"],
)
def test_a_program_loads_in_a_fresh_process(first: str, autoload: str, saved: Path) -> None:
    files = [str(saved / name) for name in ("model.pt2", "given.pt", "found.pt")]
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(first=first), *files],
        env={**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": autoload},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"  # registering imports no kernel and nothing of ONNX
    assert torch.equal(torch.load(saved / "found.pt"), torch.load(saved / "expected.pt"))


def test_a_failure_keeps_nobody_from_importing_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "mla_opt.operator.torch.op", None)
    register()
    assert "torch.ops.mla_opt could not be registered" in caplog.text
