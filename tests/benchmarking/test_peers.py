"""Peers that are installed run the same weights and agree; those that are not are listed."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mla_opt.benchmarking.peers import catalog
from mla_opt.benchmarking.point_run import Settings
from mla_opt.benchmarking.points import Point
from mla_opt.benchmarking.runner import bench
from tests.benchmarks.dims import TINY
from tests.verify import toys

ROOT = Path(__file__).parents[2]

#: Saves the model as transformers has it, and exports the same weights.
MAKE = """
import json, sys, torch, transformers
from pathlib import Path
from tests.benchmarks import export_deepseek
dims, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
model = transformers.DeepseekV3ForCausalLM(export_deepseek.config(dims)).eval()
export_deepseek.randomize(model)
model.save_pretrained(folder / "hf")
export_deepseek.export(dims, 18, folder / "model.onnx")
"""


def test_missing_peers_are_listed_with_what_installs_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    there, missing = catalog.installed(tmp_path, 1)
    assert there == []
    assert [peer.name for peer in missing] == [peer.name for peer in catalog.PEERS]
    assert all(peer.install.startswith("pip install ") for peer in missing)
    assert "llama_cpp" in missing[-1].reason


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model: for transformers, as exported, and optimized."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("peers")
    dims = json.dumps(dataclasses.asdict(TINY))
    subprocess.run([sys.executable, "-c", MAKE, dims, path], cwd=ROOT, check=True)
    command("optimize", path / "model.onnx", "--no-verify", "--quiet")
    return path


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line, in a process."""
    start = [sys.executable, "-c", "from mla_opt.cli import main; main()"]
    words = [*start, *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.sweep
def test_installed_peers_agree_with_the_original(folder: Path) -> None:
    models = folder / "model.onnx", folder / "model.mla.onnx"
    points = ("--context", "16", "--batch", "2", "--rounds", "1", "--threads", "1")
    peers = ("--peers", "--peers-model", folder / "hf")
    done = command("bench", *models, *points, *peers, "--json", folder / "r.json")
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads((folder / "r.json").read_text())
    measured = {m["participant"]: m["agreement"] for m in report["measurements"]}
    there, missing = catalog.installed(folder, 1)
    assert {"original", "optimized", *(peer.name for peer in there)} <= set(measured)
    assert [peer["name"] for peer in report["missing"]] == [peer.name for peer in missing]
    for peer in there:
        agreement = measured[peer.name]
        assert agreement["compared"] == "prompt", peer.name
        assert agreement["error"] <= agreement["tolerance"], peer.name


def test_a_peer_that_cannot_run_is_noted_and_the_rest_is_measured(tmp_path: Path) -> None:
    paths = tmp_path / "a.onnx", tmp_path / "b.onnx"
    for path, model in zip(paths, (toys.original(), toys.optimized()), strict=True):
        path.write_bytes(model.SerializeToString())
    peer = dataclasses.replace(catalog.PEERS[0], module="mla_opt.no_such_module")
    settings = Settings(*paths, (Point(4, 1, 1),), threads=1, rounds=1, seconds=9.0, quick=True)
    report = bench(settings, [peer])
    assert {m.participant for m in report.measurements} >= {"original", "optimized"}
    (missing,) = report.missing
    assert missing.name == peer.name
    assert "No module named mla_opt.no_such_module" in missing.reason
