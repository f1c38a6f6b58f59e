"""The matrix of MatMulNBits, read by the operator's definition."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from mla_opt.graphs.onnx.stored_rows import packed_rows

ROWS, COLUMNS, BLOCK = 3, 64, 32


def stored(name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
    ir.Graph([], [], nodes=[], initializers=[value], name="g")
    return value


def node(*more: ir.Value | None, domain: str = "com.microsoft") -> ir.Node:
    """A product with a weight of 4 bits, whose scales are 1, 2, 3 and so on."""
    codes = np.arange(ROWS * COLUMNS // 2).astype(np.uint8).reshape(ROWS, -1, BLOCK // 2)
    scales = np.arange(1, 7, dtype=np.float16).reshape(ROWS, -1)
    inputs = [ir.Value(name="x"), stored("codes", codes), stored("scales", scales), *more]
    attributes = {"K": COLUMNS, "N": ROWS, "bits": 4, "block_size": BLOCK}
    return ir.node("MatMulNBits", inputs, attributes, domain=domain)


def test_numbers_are_codes_less_eight_times_scales() -> None:
    packed = packed_rows(node())
    assert packed is not None
    numbers = packed.numbers(COLUMNS)
    assert numbers.shape == (ROWS, COLUMNS)
    # Byte 1 of row 0 holds the numbers 1 and 0; byte 17 (block 1) holds 1 and 1.
    assert numbers[0, 2:4].tolist() == [1 - 8, 0 - 8]
    assert numbers[0, 34:36].tolist() == [2 * (1 - 8), 2 * (1 - 8)]


G_IDX = stored("g_idx", np.zeros(COLUMNS, np.int32))
BIAS = stored("bias", np.zeros(ROWS, np.float16))


@pytest.mark.parametrize("more", [(None, G_IDX), (None, None, BIAS)])
def test_products_that_do_more_have_to_be_run(more: tuple[ir.Value | None, ...]) -> None:
    assert packed_rows(node(*more)) is None


def test_other_operators_have_none() -> None:
    assert packed_rows(node(domain="other")) is None
