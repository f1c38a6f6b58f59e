"""Make a model of DeepSeek-V3's attentions and nothing else, as deep as asked for.

    python -m tests.benchmarks.deep_model float16|float32|4bit LAYERS OUT.onnx [--solid]

61 layers are 22 GB in float16. The graph is that of `handmade`, with one `kv_b_proj` for keys and
values, as exporters write it. Weights are random numbers that repeat: at their size only their
bytes matter. Those of `o_proj`, most of the file, are zeros that take no disk until somebody copies
them, but in a solid model, whose outputs depend on its attentions. All are made when they are
written, so that no model is ever in memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.benchmarks import handmade
from tests.benchmarks.dims import TINY_V3, V3, Dims
from tests.benchmarks.handmade import Array, Tape

KINDS = ("float16", "float32", "4bit")
#: The type of what is no code.
NUMBERS = {"float32": TensorProto.FLOAT}
BYTES = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.UINT8: 1}
BLOCK = 32
#: Random bytes that all weights are cut out of.
NOISE = 1 << 24
ALIGNMENT = 4096
HIGHEST = np.finfo(np.float16).max
#: Nodes are for this opset; bodies of the fused operator for it, too.
OPSET, IR_VERSION = 21, 10


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor of the data file."""

    name: str
    kind: int
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * BYTES[self.kind]

    def proto(self, data: str) -> onnx.TensorProto:
        """How the model file refers to it."""
        made = onnx.TensorProto(name=self.name, data_type=self.kind, dims=self.shape)
        made.data_location = TensorProto.EXTERNAL
        places = {"location": data, "offset": self.start, "length": self.nbytes}
        for key, value in places.items():
            made.external_data.add(key=key, value=str(value))
        return made


class DeepTape(Tape):
    """A tape whose matrices are only described, and whose numbers are of the kind's type."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.numbers = NUMBERS.get(kind, TensorProto.FLOAT16)
        self.stored: list[Stored] = []
        self.end = 0

    def array(self, value: Array, stem: str = "const") -> str:
        """Add an initializer."""
        if value.dtype == np.float32 and self.numbers == TensorProto.FLOAT16:
            value = np.clip(value, -HIGHEST, HIGHEST).astype(np.float16)
        return super().array(value, stem)

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Append a node; what is cast to float gets the kind's type."""
        if attributes.get("to") == TensorProto.FLOAT:
            attributes["to"] = self.numbers
        return super().op(kind, *inputs, out=out, **attributes)

    def linear(self, value: str, name: str, width: int, out: int) -> str:
        """A product with a weight that is only described."""
        if self.kind != "4bit":
            return self.op("MatMul", value, self.store(name, self.numbers, width, out))
        blocks = width // BLOCK
        codes = self.store(f"{name}.codes", TensorProto.UINT8, out, blocks, BLOCK // 2)
        scales = self.store(f"{name}.scales", TensorProto.FLOAT16, out, blocks)
        attributes = {"K": width, "N": out, "bits": 4, "block_size": BLOCK, "accuracy_level": 0}
        return self.op("MatMulNBits", value, codes, scales, domain="com.microsoft", **attributes)

    def store(self, name: str, kind: int, *shape: int) -> str:
        """Describe a tensor of the data file."""
        start = self.end + -self.end % ALIGNMENT
        self.stored.append(Stored(name, kind, shape, start))
        self.end = start + self.stored[-1].nbytes
        return name


def expanded(
    tape: Tape, prefix: str, dims: Dims, parts: tuple[str, str, str, str], bias: str
) -> str:
    """The attention with keys and values of one product with the whole cache."""
    q_nope, q_pe, c_kv, k_pe = parts
    nope, value = dims.qk_nope_head_dim, dims.v_head_dim
    width = dims.num_heads * (nope + value)
    both = tape.linear(c_kv, f"{prefix}.kv_b_proj", dims.kv_lora_rank, width)
    both = tape.op("Squeeze", both, tape.ints(1))
    both = tape.op("Reshape", both, tape.ints(0, 0, dims.num_heads, nope + value))
    k_nope, values = tape.split(tape.op("Transpose", both, perm=[0, 2, 1, 3]), (nope, value))
    shared = tape.op("Expand", k_pe, tape.ints(1, dims.num_heads, 1, 1))
    keys = tape.op("Concat", k_nope, shared, axis=-1)
    query = tape.op("Concat", q_nope, q_pe, axis=-1)
    scores = tape.op("MatMul", query, tape.transposed(keys))
    scores = tape.op("Add", tape.op("Mul", scores, tape.number(dims.scale)), bias)
    return tape.op("MatMul", tape.op("Softmax", scores, axis=-1), values)


def decoder(tape: DeepTape, dims: Dims) -> None:
    """Attention after attention, with norms and sums between them."""
    handmade.FORMS["one kv_b_proj"] = expanded
    shared = (*handmade.angles(tape, dims), handmade.mask(tape))
    table = handmade.weight("model.embed_tokens", dims.vocab, dims.hidden_size)
    hidden = tape.op("Gather", tape.array(table, "embed_tokens"), "input_ids")
    for index in range(dims.layers):
        normed = tape.rms_norm(hidden, f"model.layers.{index}.input_layernorm", dims.hidden_size)
        made = handmade.attention(tape, normed, index, dims, "one kv_b_proj", shared)
        hidden = tape.op("Add", hidden, made)
    tape.op("Identity", hidden, out="hidden")


def interface(
    dims: Dims, numbers: int
) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """Those of `handmade` in another type, with the last hidden states in place of the logits."""
    inputs, outputs = handmade.interface(dims)
    for each in (*inputs, *outputs):
        if each.type.tensor_type.elem_type == TensorProto.FLOAT:
            each.type.tensor_type.elem_type = numbers
    shape = ["batch", "query", dims.hidden_size]
    outputs[0] = helper.make_tensor_value_info("hidden", numbers, shape)
    return inputs, outputs


def make(kind: str, dims: Dims, path: Path, *, solid: bool = False) -> Path:
    """Write a model and its data file; `solid`: with numbers in `o_proj`."""
    tape = DeepTape(kind)
    decoder(tape, dims)
    data = f"{path.name}.data"
    stored = [each.proto(data) for each in tape.stored]
    graph = helper.make_graph(
        tape.nodes, kind, *interface(dims, tape.numbers), [*tape.initializers, *stored]
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
    with (path.parent / data).open("wb") as file:
        write(tape.stored, file, solid=solid)
    path.write_bytes(model.SerializeToString())
    return path


def write(stored: list[Stored], file: IO[bytes], *, solid: bool) -> None:
    """Write every tensor at its place, from a place of the noise that depends on its name."""
    noise = np.random.default_rng(0)
    codes = noise.integers(0, 256, NOISE, np.uint8).tobytes()
    numbers = noise.standard_normal(NOISE // 2) * handmade.WEIGHT_STD
    of_kind = {
        TensorProto.UINT8: codes,
        TensorProto.FLOAT16: _float16(numbers),
        TensorProto.FLOAT: numbers.astype(np.float32).tobytes(),
    }
    scales = _float16(noise.uniform(0.003, 0.009, NOISE // 2))
    for each in stored:
        file.seek(each.start)
        if (
            each.name.endswith("o_proj") and not solid
        ):  # a hole, which reads as zeros and takes no disk
            file.truncate(each.start + each.nbytes)
            continue
        bytes_of = scales if each.name.endswith(".scales") else of_kind[each.kind]
        at, left = 4 * (zlib.crc32(each.name.encode()) % (NOISE // 4)), each.nbytes
        while left:
            left -= file.write(bytes_of[at : at + left])
            at = 0


def _float16(numbers: Array) -> bytes:
    return numbers.astype(np.float16).tobytes()


def main() -> None:
    """Make one model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("layers", type=int)
    parser.add_argument("path", type=Path)
    parser.add_argument("--tiny", action="store_true", help="few heads of few dims")
    parser.add_argument("--solid", action="store_true", help="numbers in o_proj, which take disk")
    options = parser.parse_args()
    dims = dataclasses.replace(TINY_V3 if options.tiny else V3, layers=options.layers)
    make(options.kind, dims, options.path, solid=options.solid)


if __name__ == "__main__":
    main()
