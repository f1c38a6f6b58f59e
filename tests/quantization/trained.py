"""A small model that has learnt something: byte by byte, from the source text of Python's library.

On noise a rounding error is as good as any other number. What matters is what a cache of fewer bits
does to text that a model predicts, so one is trained here: DeepSeek-V3's attention in two layers,
dense, C 256 (two scales a row), and exported.

    python -m tests.quantization.trained [--record benchmarks.md]

prints the table after a minute, and puts it into that page.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir
import onnxruntime as ort

import mla_opt
from mla_opt.benchmarking import machine
from mla_opt.ort_values import from_ort_value, to_ort_value
from tests.benchmarks import record
from tests.benchmarks.runner import THREADS
from tests.exports.cache import built_once, cache_folder, fingerprint
from tests.exports.spec import ExportSpec

Array = npt.NDArray[Any]

SPEC = ExportSpec("deepseek_v3", opset=19)
HELD_OUT = ("argparse.py", "difflib.py", "statistics.py", "textwrap.py", "tarfile.py")
LENGTH, BATCH = 128, 16
#: A minute on one processor.
STEPS = 300
CACHE_TYPES = ("float32", "float16", "bfloat16", "int8", "fp8")
SIZES = {
    "vocab_size": 256,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "kv_lora_rank": 256,
    "q_lora_rank": None,
    "first_k_dense_replace": 2,
}


@dataclass(frozen=True)
class Reading:
    """What a model says of held-out text.

    Attributes:
        loss: nats a byte.
        logits: ``[windows, LENGTH - 1, 256]``.
    """

    loss: float
    logits: Array

    @property
    def perplexity(self) -> float:
        """Bytes that it hesitates between."""
        return float(np.exp(self.loss))

    def agreement(self, other: Reading) -> float:
        """Share of places where both find the same byte the likeliest."""
        return float((self.logits.argmax(-1) == other.logits.argmax(-1)).mean())

    def drift(self, other: Reading) -> float:
        """Root mean square distance of the logits, relative to their spread."""
        error = np.sqrt(np.mean((self.logits - other.logits) ** 2))
        return float(error / other.logits.std())


def text(held_out: bool) -> bytes:
    """The sources that are learnt from, or those that are not."""
    home = Path(sysconfig.get_paths()["stdlib"])
    names = [home / name for name in HELD_OUT]
    if held_out:
        return b"".join(path.read_bytes() for path in names)
    paths = [path for path in sorted(home.glob("*.py")) if path not in names]
    return b"".join(path.read_bytes() for path in paths)


def trained(steps: int) -> Any:
    """The model after so many steps of training."""
    import torch

    from tests.exports.families import FAMILIES

    torch.manual_seed(0)
    # None of the seeded noise: what learns begins as the architecture says.
    family = FAMILIES[SPEC.family]
    model = family._construct(family.config(**SIZES), SPEC.attention)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    source = torch.frombuffer(bytearray(text(held_out=False)), dtype=torch.uint8).long()
    model.train()
    for _ in range(steps):
        starts = torch.randint(len(source) - LENGTH, (BATCH,))
        batch = torch.stack([source[start : start + LENGTH] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def exported(steps: int) -> Path:
    """The file of the trained model; trained once for each number of steps."""
    own = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:10]
    stem = f"trained-{steps}-{own}-{fingerprint('spec', 'flat', 'exporters', 'families')}"
    return built_once(cache_folder() / f"{stem}.onnx", lambda path: _export(path, steps))


def _export(path: Path, steps: int) -> None:
    import torch

    from tests.exports.exporters import export_dynamo
    from tests.exports.flat import FlatCausalLM
    from tests.exports.patches import patches_for

    model = trained(steps)
    with torch.no_grad(), patches_for("deepseek_v3"):
        export_dynamo(SPEC, path, FlatCausalLM(model, cache=True).eval())


def with_cache_type(source: Path, cache_type: str, folder: Path) -> Path:
    """The model optimized, with packed caches of a type."""
    kept: Any = "keep" if cache_type == "float32" else cache_type
    result = mla_opt.optimize(source, cache="packed", cache_type=kept, verify=False)
    path = folder / f"{cache_type}.onnx"
    onnx_ir.save(result.model, path)
    return path


def read(path: Path, windows: int) -> Reading:
    """Let a model read held-out text in windows of `LENGTH`, each from an empty cache."""
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(mla_opt.kernel_library()))
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    whole = np.frombuffer(text(held_out=True), np.uint8).astype(np.int64)
    starts = np.linspace(0, len(whole) - LENGTH, windows).astype(int)
    ids = np.stack([whole[start : start + LENGTH] for start in starts])
    logits = np.concatenate(
        [_logits(session, part) for part in np.array_split(ids, 1 + windows // 16)]
    )
    logits = logits[:, :-1].astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(-1))
    chosen = np.take_along_axis(shifted, ids[:, 1:, None], -1)[..., 0]
    return Reading(float((log_sum - chosen).mean()), logits)


def _logits(session: ort.InferenceSession, ids: Array) -> Array:
    batch, length = ids.shape
    feeds: dict[str, Array] = {
        "input_ids": ids,
        "attention_mask": np.ones((batch, length), np.int64),
        "position_ids": np.broadcast_to(np.arange(length), ids.shape).copy(),
    }
    kinds = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int8)": "int8"}
    kinds |= {"tensor(bfloat16)": "bfloat16", "tensor(float8e4m3fn)": "float8_e4m3fn"}
    for given in session.get_inputs():
        if given.name not in feeds:
            feeds[given.name] = np.zeros((batch, 1, 0, given.shape[3]), np.dtype(kinds[given.type]))
    values = {name: to_ort_value(feed) for name, feed in feeds.items()}
    return from_ort_value(session.run_with_ort_values(["logits"], values)[0])


def readings(steps: int, windows: int) -> dict[str, Reading]:
    """What the model with each type of cache says of the same held-out text."""
    with tempfile.TemporaryDirectory(prefix="mla_opt_") as folder:
        source = exported(steps)
        made = {kind: with_cache_type(source, kind, Path(folder)) for kind in CACHE_TYPES}
        return {kind: read(path, windows) for kind, path in made.items()}


def table(found: dict[str, Reading]) -> str:
    """The readings as Markdown."""
    exact = found["float32"]
    lines = [
        "| cache | nats a byte | perplexity | same likeliest byte | logits, rms of the spread |",
        "|---|---|---|---|---|",
    ]
    for kind, reading in found.items():
        lines.append(
            f"| {kind} | {reading.loss:.4f} | {reading.perplexity:.4f} |"
            f" {reading.agreement(exact):.2%} | {reading.drift(exact):.1e} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Print the table, and keep it where that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    record.add_option(parser)
    options = parser.parse_args(arguments)
    found = table(readings(STEPS, windows=256))
    print(found)
    if options.record:
        command = record.command_line("tests.quantization.trained", arguments)
        about, packages = machine.measure(THREADS), ("torch", "transformers")
        record.keep(options.record, about, "caches of 8 bits on text", command, [found], packages)


if __name__ == "__main__":
    main(sys.argv[1:])
