"""Loading models that one message has no room for: nothing is written to the disk for that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from mla_opt.verification.onnx import sessions
from mla_opt.verification.onnx.sessions import open_model
from tests.verify import toys

FEEDS = {
    "input_ids": np.asarray([[3, 8, 1]]),
    "attention_mask": np.ones((1, 3), np.int64),
    "past_0_keys": np.zeros((1, 1, 0, toys.LATENT), np.float32),
    "past_0_values": np.zeros((1, 1, 0, toys.ROPE), np.float32),
}


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("a second copy was written to the disk")


@pytest.mark.parametrize("external", [False, True])
def test_large_tensors_are_given_beside_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool
) -> None:
    model = ir.from_proto(toys.original())
    expected = open_model(model, "original").session().run(FEEDS)
    if external:
        ir.save(model, tmp_path / "model.onnx", external_data="weights")
        model = ir.load(tmp_path / "model.onnx")
    monkeypatch.setattr(sessions, "MAX_BYTES_IN_MEMORY", 1 << 12)
    monkeypatch.setattr(sessions, "LARGE", 256)
    monkeypatch.setattr(sessions.ir, "save", forbidden)
    made = open_model(model, "original").session().run(FEEDS)
    assert expected.keys() == made.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(made[name], array, atol=1e-6)
