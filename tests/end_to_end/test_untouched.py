"""Models without latent attention, and near misses of it, come out as they went in."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

import mla_opt
from tests.end_to_end.command import command
from tests.exports import controls
from tests.exports.controls import CONTROLS, GENUINE, exported_control

#: What the optimizer says of each control. Nothing at all where it sees no attention.
CODES: dict[str, set[str]] = {
    "gpt2": {"query_from_projection"},
    "llama": {"keys_not_from_latent"},
}
NAMES = sorted(CONTROLS)


def refused(name: str, opset: int = 18) -> mla_opt.NothingMatchedError:
    with pytest.raises(mla_opt.NothingMatchedError) as caught:
        mla_opt.optimize(exported_control(name, opset))
    return caught.value


@pytest.mark.parametrize("name", NAMES)
def test_is_refused_with_a_reason(name: str) -> None:
    error = refused(name)
    assert error.report is not None
    assert error.report.sites == ()
    codes = {refusal.code for refusal in error.report.refusals}
    assert codes == CODES[name]
    assert all(code in str(error) for code in codes)
    for refusal in error.report.refusals:
        assert re.fullmatch(r"[a-z_]+", refusal.code)
        assert len(refusal.reason) > 20
        assert refusal.nodes
