"""Every form that `optimize` writes, at the head widths of released models, and what it is fed.

Latent attention with N 128, R 64, V 128 and C 512, as DeepSeek has it: some runtimes compute
narrower heads by other kernels, and those were right where these were not.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

import mla_opt
from tests.graphs.latent_block import Block, build, feeds

Arrays = dict[str, np.ndarray[Any, Any]]

#: Rows of the buffers; what lies beyond the valid ones is any number.
CAPACITY = 256
RUBBISH = 3.0
#: Relative to the spread. Measured: below 1e-3; where a runtime is wrong, above 1.
TOLERANCE = 5e-3

REAL = Block(
    heads=4,
    nope=128,
    rope=64,
    value=128,
    latent=512,
    hidden=96,
    q_lora=64,
    layers=2,
    scale=0.002,
    guarded=True,
)
BLOCKS = {
    "boolean-17": dataclasses.replace(REAL, bias="boolean", opset=17),
    "additive-20": dataclasses.replace(REAL, bias="additive", opset=20),
    "boolean-24": dataclasses.replace(REAL, bias="boolean", opset=24),
    # Its two attentions have two signatures: the second reads what the first has written.
    "shared cache": dataclasses.replace(REAL, share=True, bias="boolean"),
}
FORMS: dict[str, dict[str, Any]] = {
    "absorbed": {"prefill": "absorbed"},
    "auto": {},
    "expanded": {"prefill": "expanded"},
    "packed absorbed": {"cache": "packed", "prefill": "absorbed"},
    "packed": {"cache": "packed"},
    "packed expanded": {"cache": "packed", "prefill": "expanded"},
    "even absorbed": {"cache": "even", "prefill": "absorbed"},
    "even": {"cache": "even"},
    "even expanded": {"cache": "even", "prefill": "expanded"},
    "static": {"cache": "static"},
    "not absorbed": {"absorb": "none"},
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """One call: sequences, new and past tokens, and how many of the first are padding."""

    batch: int
    query: int
    past: int
    padding: int = 0


#: Prompts, chunks on a past (the longer one above the crossover of 171), and steps.
CALLS = (
    Sizes(1, 200, 0),
    Sizes(2, 50, 0, padding=3),
    Sizes(1, 5, 150),
    Sizes(2, 100, 100, padding=3),
    Sizes(1, 1, 40),
    Sizes(2, 1, 40, padding=3),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One form of one model."""

    block: str
    form: str
    target: str = "portable"

    @property
    def id(self) -> str:
        """A name that is good for a file."""
        return f"{self.block}-{self.form}-{self.target}".replace(" ", "_")

    def model(self) -> onnx.ModelProto:
        """What `optimize` makes."""
        source = build(BLOCKS[self.block])
        options = {"target": self.target, **FORMS[self.form]}
        return ir.to_proto(mla_opt.optimize(source, verify=False, **options).model)

    def feeds(self, sizes: Sizes) -> Arrays:
        """What the model is given, made of what the original is."""
        given = original_feeds(BLOCKS[self.block], sizes)
        pasts = [name for name in given if name.startswith("past")]
        caches = {name: given.pop(name) for name in pasts}
        return given | self._laid_out(caches, sizes, "past")

    def _laid_out(self, caches: Arrays, sizes: Sizes, end: str) -> Arrays:
        cache = FORMS[self.form].get("cache", "keep")
        if cache == "keep":
            return caches
        pairs = zip(*(iter(caches.values()),) * 2)
        packed = [np.concatenate(pair, axis=-1) for pair in pairs]
        if cache == "even":
            halves = (half for rows in packed for half in np.split(rows, 2, axis=-1))
            return dict(zip(caches, halves))
        if cache == "static" and end == "past":
            packed = [_buffer(rows) for rows in packed]
        made = {f"{end}.{layer}.latent": rows for layer, rows in enumerate(packed)}
        if cache == "static" and end == "past":
            made["past_len"] = np.full(sizes.batch, sizes.past, np.int32)
        return made

    def expected(self, sizes: Sizes) -> Arrays:
        """What the original returns, in the layout of this form."""
        made = dict(original_outputs(self.block, sizes))
        hidden = made.pop("hidden")
        return {"hidden": hidden} | self._laid_out(made, sizes, "present")

    def check(self, sizes: Sizes, got: Arrays) -> None:
        """Every output is right, as far as a buffer's rows are valid."""
        for name, wanted in self.expected(sizes).items():
            seen = got[name]
            if FORMS[self.form].get("cache") == "static" and name != "hidden":
                seen = seen[:, :, : sizes.past + sizes.query]
            assert seen.shape == wanted.shape, (self.id, sizes, name)
            error = np.abs(seen.astype(np.float64) - wanted).max() / wanted.std()
            assert error < TOLERANCE, (self.id, sizes, name, float(error))


@functools.cache
def _original(block: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(build(BLOCKS[block]).SerializeToString(), options)


@functools.cache
def original_outputs(block: str, sizes: Sizes) -> Arrays:
    """What ONNX Runtime makes of the model as it was."""
    session = _original(block)
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, original_feeds(BLOCKS[block], sizes)), strict=True))


def _buffer(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    batch, heads, past, width = rows.shape
    made = np.full((batch, heads, CAPACITY, width), RUBBISH, rows.dtype)
    made[:, :, :past] = rows
    return made


def original_feeds(block: Block, sizes: Sizes) -> Arrays:
    """Inputs of the model as it was; nothing sees the padding of the first sequence."""
    given = feeds(block, sizes.batch, sizes.query, sizes.past)
    for name, mask in given.items():
        if name.startswith("attention_mask") and sizes.padding:
            nothing = False if mask.dtype == np.bool_ else -np.inf
            mask[0, :, :, : sizes.padding] = nothing
            mask[0, :, : max(sizes.padding - sizes.past, 0)] = nothing
    return given
