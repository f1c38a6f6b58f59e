"""Whatever a file holds: a result, or a refusal that says why. Never another error."""

from __future__ import annotations

import contextlib
from pathlib import Path

import onnx
import pytest

from mla_opt import api
from mla_opt.errors import InputError, NothingMatchedError, VerificationError
from mla_opt.files.model_io import read_model
from mla_opt.verification import verify
from tests.files.damages import ANSWERED, REFUSED, TAKEN, Damage
from tests.graphs.latent_block import Block, build


def damaged(damage: Damage, folder: Path) -> Path:
    model = build(Block())
    damage(model)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("damage", REFUSED.values(), ids=REFUSED)
def test_refused_when_read(damage: Damage, tmp_path: Path) -> None:
    path = damaged(damage, tmp_path)
    for command in (api.inspect, api.optimize, lambda path: verify(path, path)):
        with pytest.raises((InputError, NothingMatchedError)) as caught:
            command(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize("damage", TAKEN.values(), ids=TAKEN)
def test_strange_and_valid(damage: Damage, tmp_path: Path) -> None:
    path = damaged(damage, tmp_path)
    result = api.optimize(path)
    assert len(result.report.sites) == 1
    assert result.report.verification is not None
    assert verify(path, path, controls=False).passed


@pytest.mark.parametrize("damage", ANSWERED.values(), ids=ANSWERED)
def test_there_is_an_answer(damage: Damage, tmp_path: Path) -> None:
    path = damaged(damage, tmp_path)
    verified = damage.__name__ != "chain"  # which takes ONNX Runtime a while
    with contextlib.suppress(InputError, NothingMatchedError, VerificationError, MemoryError):
        assert api.optimize(path, verify=verified).report.sites


def test_the_undamaged_model_is_taken(tmp_path: Path) -> None:
    path = damaged(lambda model: None, tmp_path)
    assert len(api.optimize(path).report.sites) == 1


def test_a_conditional_loop_is_no_endless_one(tmp_path: Path) -> None:
    """Exporters write the largest number as the trips of a loop that a condition ends."""
    path = damaged(REFUSED["endless_loop"], tmp_path)
    model = onnx.load(path)
    loop = next(node for node in model.graph.node if node.op_type == "Loop")
    body = loop.attribute[0].g
    body.node[0].op_type = "Not"
    path.write_bytes(model.SerializeToString())
    read_model(path)
