"""OpenVINO on the same weights, its cache kept as state, in a process of its own.

python -m mla_opt.benchmarking.peers.openvino_worker DIR THREADS FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino

from mla_opt.benchmarking.memory import die_first
from mla_opt.benchmarking.peers.convert import converted
from mla_opt.benchmarking.peers.stepping import TOKEN, Ids, SteppingWorker
from mla_opt.benchmarking.serving import serve

Array = npt.NDArray[Any]

CONVERTER = "mla_opt.benchmarking.peers.openvino_convert"
ROWS_AXIS = 2


class OpenVinoWorker(SteppingWorker):
    """A compiled stateful model and one request."""

    def __init__(self, path: Path, threads: int) -> None:
        # f32 throughout, like the others; with a bf16 hint the angles of positions go wrong.
        config = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.model = openvino.Core().compile_model(path, "CPU", config)
        self.request = self.model.create_infer_request()
        self.names = {name for port in self.model.inputs for name in port.names}
        self.kept: dict[str, Array] = {}
        super().__init__()

    def fill(self) -> None:
        """Random rows in every state."""
        random = np.random.default_rng(0)
        self.kept = {}
        self.request.reset_state()
        for state in self.request.query_state():
            shape = list(state.state.shape)
            shape[0], shape[ROWS_AXIS] = self.point.batch, self.point.context
            rows = random.standard_normal(shape, np.float32)
            state.state = openvino.Tensor(rows)
            if not self.point.fed_back:
                self.kept[state.name] = rows

    def restore(self) -> None:
        """The same rows again."""
        for state in self.request.query_state():
            state.state = openvino.Tensor(self.kept[state.name])

    def prepare(self, start: int) -> dict[str, Array]:
        """Ids, mask and positions."""
        ids = np.full((self.point.batch, self.point.query), TOKEN, np.int64)
        return self._feeds(ids, start)

    def run(self, prepared: dict[str, Array]) -> None:
        """One request."""
        self.request.infer(prepared)

    def logits(self, ids: Ids) -> Array:
        """Logits of the last position, in a request of its own."""
        request = self.model.create_infer_request()
        request.infer(self._feeds(np.array(ids, np.int64), 0))
        logits: Array = request.get_output_tensor(0).data[:, -1]
        return logits

    def _feeds(self, ids: Array, start: int) -> dict[str, Array]:
        batch, new = ids.shape
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones((batch, start + new), np.int64),
            "position_ids": np.tile(np.arange(start, start + new), (batch, 1)),
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        return {name: value for name, value in feeds.items() if name in self.names}


def main(model: str, threads: str, folder: str) -> None:
    """Serve requests until standard input ends."""
    die_first()
    path = Path(folder) / "openvino.xml"
    serve(lambda: OpenVinoWorker(converted(CONVERTER, [model], path), int(threads)))


if __name__ == "__main__":
    main(*sys.argv[1:4])
