"""`ExportSpec`: which model, by which exporter, in which form."""

from __future__ import annotations

import dataclasses
import json

#: The exporters of the current transformers release, all run in this interpreter.
CURRENT_EXPORTERS = ("dynamo", "torchscript", "hf", "hf_ort")
#: The exporters of transformers 4.57, which need an environment of their own (`expanded_cache`).
EXPANDED_EXPORTERS = ("dynamo457", "optimum457")


@dataclasses.dataclass(frozen=True, order=True)
class ExportSpec:
    """One cell of the matrix.

    Attributes:
        family: A key of `families.FAMILIES`.
        exporter: `dynamo` and `torchscript` are torch.onnx.export; `hf` is transformers.exporters,
            `hf_ort` the same with its ONNX Runtime fusions; `dynamo457` and `optimum457` belong to
            transformers 4.57.
        opset: The opset asked for. The exporter may write another one.
        attention: The attention implementation the model runs, `eager` or `sdpa`.
        cache: Whether past keys and values are inputs, and present ones outputs.
        dtype: `float32` or `float16`.
        component: `model`, or `prefill` / `decode` where the exporter writes the two apart.
    """

    family: str
    exporter: str = "dynamo"
    opset: int = 18
    attention: str = "sdpa"
    cache: bool = True
    dtype: str = "float32"
    component: str = "model"

    @property
    def id(self) -> str:
        """A name that is stable, unique and good for a file and for a pytest id."""
        parts = [self.family, f"{self.exporter}-opset{self.opset}", self.attention]
        parts.append("cache" if self.cache else "nocache")
        if self.dtype != "float32":
            parts.append(self.dtype)
        if self.component != "model":
            parts.append(self.component)
        return "-".join(parts)

    @property
    def expanded(self) -> bool:
        """Whether the export caches expanded keys and values (transformers before 5.15)."""
        return self.exporter in EXPANDED_EXPORTERS

    def to_json(self) -> str:
        """The spec as one line, for the command line of a subprocess."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ExportSpec:
        """The inverse of `to_json`."""
        return cls(**json.loads(text))
