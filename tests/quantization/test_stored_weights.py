"""Weights stored in narrower types, in every way in which DequantizeLinear reads them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.graphs.latent_block import Block, build
from tests.quantization.checks import check_equal, check_verified
from tests.quantization.stored import Storage, store

#: Its matrices have more elements than are embedded where a part of a graph is run.
BLOCK = Block(heads=4, nope=16, rope=8, value=16, latent=64, hidden=48, q_lora=32, opset=21)
REAL = Block(heads=4, nope=128, rope=64, value=128, latent=512, hidden=64, q_lora=64, opset=21)

STORAGES = [
    *(
        Storage(kind, scales, offset)
        for kind in ("INT8", "UINT8", "INT4", "UINT4")
        for scales in ("tensor", "column", 16)
        for offset in (False, True)
        if not (offset and kind.startswith("INT"))
    ),
    Storage("INT16"),
    Storage("UINT16", "column", offset=True),
    Storage("FLOAT8E4M3FN"),
    Storage("FLOAT8E4M3FN", "column"),
    Storage("FLOAT8E4M3FN", 16),
    Storage("FLOAT8E5M2", "column"),
    Storage("INT2", 16, opset=25),
    Storage("UINT2", "column", offset=True, opset=25),
]


@pytest.mark.parametrize("how", STORAGES, ids=str)
def test_the_weights_are_what_the_file_dequantizes(how: Storage) -> None:
    check_equal(store(build(BLOCK), how), BLOCK)


@pytest.mark.parametrize("how", [Storage("INT4", 32), Storage("FLOAT8E4M3FN", 128)], ids=str)
def test_real_widths(how: Storage) -> None:
    check_equal(store(build(REAL), how), REAL)


@pytest.mark.parametrize("how", [Storage("INT4", 16), Storage("FLOAT8E4M3FN", "column")], ids=str)
def test_verification_passes(how: Storage) -> None:
    check_verified(store(build(BLOCK), how))


def test_storing_changes_what_is_computed() -> None:
    """Or the tests above would show nothing of narrow types."""
    plain, stored = build(BLOCK), store(build(BLOCK), Storage("INT4", 16))
    before = {t.name for t in plain.graph.initializer}
    gone = before - {t.name for t in stored.graph.initializer}
    assert len(gone) >= 4
    large = [t for t in stored.graph.initializer if t.data_type == onnx.TensorProto.INT4]
    assert max(int(np.prod(t.dims)) for t in large) > 1024
