"""Old data is left out only where it is known that nobody refers to it."""

from __future__ import annotations

import pytest

from mla_opt.folders.data_files import DataFiles

USERS = {"own.data": frozenset({"a.onnx"}), "both.data": frozenset({"a.onnx", "b.onnx"})}


@pytest.mark.parametrize(
    ("unknown", "replaced", "needless"),
    [
        (False, {"a.onnx"}, {"own.data"}),
        (False, {"a.onnx", "b.onnx"}, {"own.data", "both.data"}),
        (True, {"a.onnx", "b.onnx"}, set()),
    ],
    ids=["one of two", "all", "beside a file that cannot be read"],
)
def test_what_nobody_needs(unknown: bool, replaced: set[str], needless: set[str]) -> None:
    assert DataFiles(USERS, unknown).needless(replaced) == needless
