"""One library file runs on every ONNX Runtime from 1.20 on."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import mla_opt
from mla_opt.bundles import BundleOptions, export_bundle
from mla_opt.models import demo_model
from tests.kernels import test_crossover
from tests.kernels.host import session
from tests.kernels.test_matmul_nbits import rounded
from tests.kernels.test_onnxruntime import matches
from tests.operator import cases
from tests.operator.test_matmul_nbits import Layer, taken_over

RUN = Path(__file__).with_name("run_old.py")
SIGNATURES = [*cases.REDUCED_SIGNATURES, cases.NARROW_SIGNATURES[0]]
TYPES = [np.float32, np.float16, np.float64]
CROSSOVER, NBITS = "crossover", "nbits"
LAYER = Layer(zero_points=True, bias=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models of opset 18, which all of them read, and what they are fed."""
    folder = tmp_path_factory.mktemp("models")
    written = {}
    for signature in SIGNATURES:
        for dtype in TYPES[:1] if signature.narrow else TYPES:
            name = f"{signature.overload}_{np.dtype(dtype).name}"
            feeds = cases.operands(signature, dtype=dtype)
            onnx.save(cases.model(signature, feeds), folder / f"{name}.onnx")
            np.savez(folder / f"{name}.npz", **feeds)
            written[name] = signature, feeds
    onnx.save(test_crossover.model(), folder / f"{CROSSOVER}.onnx")
    np.savez(folder / f"{CROSSOVER}.npz", size=np.array([180], np.int64))
    onnx.save(ir.to_proto(taken_over(LAYER.model(), narrow=True)), folder / f"{NBITS}.onnx")
    rows = np.random.default_rng(0).standard_normal((3, LAYER.inner)).astype(np.float32)
    np.savez(folder / f"{NBITS}.npz", A=rows)
    return folder, written


def assert_crossover(folder):
    """What the library says here, and not what its body does."""
    expected = test_crossover.said(session(test_crossover.model()))
    assert expected > 1, "that is what the body says"
    assert np.load(folder / f"{CROSSOVER}.out.npz")["limit"].tolist() == [expected]


def assert_product(folder):
    """By the kernel, or by the body where this processor has none."""
    rows = np.load(folder / f"{NBITS}.npz")["A"]
    made = np.load(folder / f"{NBITS}.out.npz")["Y"]
    expected = LAYER.times(rounded(rows))
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5 * expected.std())


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A folder that `mla-opt export --to onnxruntime` writes."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    options = BundleOptions(64, "bfloat16", verify=False)
    export_bundle(demo_model(), tmp_path / "bundle", options)
    return tmp_path / "bundle"


def generated(python, bundle):
    """What the loader of a bundle says."""
    command = [python, str(bundle / "generate.py"), "8", "3", "14", "15", "92"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split() or done.stderr


@pytest.mark.old_onnxruntime
@pytest.mark.parametrize("version", ["1.20.1", "1.23.2", "1.27.0"])
def test_an_older_onnxruntime(models, bundle, version, tmp_path):
    folder, written = models
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", f"onnxruntime=={version}", "numpy<2.4"]
    subprocess.run(install, check=True)
    command = [python, str(RUN), str(mla_opt.kernel_library()), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == version
    for name, (signature, feeds) in written.items():
        outputs = np.load(folder / f"{name}.out.npz")
        assert matches([outputs[key] for key in signature.outputs], signature, feeds), name
        optimized = onnx.load(folder / f"{name}.optimized").graph
        assert [node.op_type for node in optimized.node] == ["LatentAttention"], name
    assert_crossover(folder)
    assert_product(folder)
    assert generated(python, bundle) == generated(sys.executable, bundle)


def test_the_same_script_in_this_onnxruntime(models):
    """So that what the nightly run relies on is run each time."""
    folder, written = models
    command = [sys.executable, str(RUN), str(mla_opt.kernel_library()), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    for name, (signature, feeds) in written.items():
        outputs = np.load(folder / f"{name}.out.npz")
        assert matches([outputs[key] for key in signature.outputs], signature, feeds), name
    assert_crossover(folder)
    assert_product(folder)
