"""A model of one product, in files of its own making, and how a refusal of one is looked at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mla_opt.errors import InputError
from mla_opt.files import model_io

WEIGHT = np.arange(600, dtype=np.float32).reshape(20, 30)


def proto(opset: int = 18, domain: str = "", extra: tuple[onnx.NodeProto, ...] = ()) -> Any:
    """One MatMul with a weight of 2400 bytes, and a tiny bias."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["y0"]),
            helper.make_node("Add", ["y0", "b"], ["y"]),
            *extra,
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence", 20])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", 30])],
        [onnx.numpy_helper.from_array(WEIGHT, "w"),
         onnx.numpy_helper.from_array(np.ones(30, np.float32), "b")],
    )  # fmt: skip
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, opset), helper.make_opsetid("other", 1)],
        ir_version=10,
        producer_name="tests",
        producer_version="7",
    )


def save(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def save_external(path: Path, location: str = "w.bin", **fields: int | str) -> Path:
    """Save with ``w`` in an external file that is written only if it belongs in the folder."""
    model = proto()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": 0, "length": WEIGHT.nbytes, **fields}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return save(path, model)


def message(call: Callable[[], object], path: Path) -> str:
    """Return the one line that ``call`` is refused with; it must begin with the file."""
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text.removeprefix(str(path))


def refused(path: Path) -> str:
    """Return what reading the file is refused with."""
    return message(lambda: model_io.read_model(path), path)
