"""The operator that holds its weights, by itself: what its products cost, and a prompt of it.

One thread, processor time, in turns, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from mla_opt.benchmarking import machine
from mla_opt.kernels import cpu_tiers, kernel_library
from mla_opt.operator import Signature
from mla_opt.operator.multi_head import Form, MultiHeadSignature
from tests.benchmarks.figures import Figure
from tests.benchmarks.sheet import Sheet, number
from tests.operator import cases
from tests.operator.multi_head_cases import REAL_STORAGES, V2_LITE, model, real_operands

#: Rows in the cache of a step: so few that the products are most of the time.
PAST = 64
SCALE = 0.07
#: What the two products of a layer took in ONNX Runtime, in microseconds, and the share wanted.
TODAY, SHARE = 986.0, 0.35
WANTED = "packed4_32"
PRODUCT = "square MatMul of ONNX Runtime"
TWO_PRODUCTS, ATTENTION = "two MatMuls of ONNX Runtime", "attention alone"

Feeds = Mapping[str, np.ndarray[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Spent:
    """Seconds of every run of one variant."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        """The fastest."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """The one in the middle."""
        return statistics.median(self.seconds)


def session(proto: onnx.ModelProto) -> ort.InferenceSession:
    """One thread, with the kernel."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.register_custom_ops_library(str(kernel_library()))
    return ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])


def take_turns(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Spent]:
    """Run each once a round."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            samples[name].append(time.process_time() - start)
    return {name: Spent(tuple(spent)) for name, spent in samples.items()}


def holding(storage: str, query_len: int, past: int, form: Form = "auto") -> Callable[[], object]:
    """One node with its weights in the model."""
    signature, feeds = real_operands(storage, query_len=query_len, past=past)
    signature = MultiHeadSignature(signature.attention, signature.storage, form)
    proto = model(signature, feeds, geometry=V2_LITE, opset=21, scale=SCALE, constant=True)
    given = {name: feed for name, feed in feeds.items() if not name.startswith("kv_b")}
    return _run(session(proto), given)


def attention_alone() -> Callable[[], object]:
    """``LatentAttention`` on as many rows."""
    _, operands = real_operands("float32", query_len=1, past=PAST)
    g = V2_LITE
    absorbed = np.ones((1, g.num_heads, 1, g.latent_width), np.float32)
    feeds = {"query": absorbed, "latent": operands["latent"], "cache": operands["cache"]}
    signature = Signature(has_cache=True, causal=True)
    proto = cases.model(signature, feeds, opset=21, scale=SCALE, rank=g.kv_lora_rank)
    return _run(session(proto), feeds)


def two_products() -> Callable[[], object]:
    """What stands around ``LatentAttention``: one token times W_UK and W_UV of every head."""
    g, random = V2_LITE, np.random.default_rng(0)
    matrices = {
        "w_uk": random.standard_normal((g.num_heads, g.qk_nope_head_dim, g.kv_lora_rank)),
        "w_uv": random.standard_normal((g.num_heads, g.kv_lora_rank, g.v_head_dim)),
    }
    feeds = {
        "query": np.ones((1, g.num_heads, 1, g.qk_nope_head_dim), np.float32),
        "output": np.ones((1, g.num_heads, 1, g.kv_lora_rank), np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["query", "w_uk"], ["absorbed"]),
        helper.make_node("MatMul", ["output", "w_uv"], ["values"]),
    ]
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, x.shape) for n, x in feeds.items()
    ]
    outputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("absorbed", "values")
    ]
    stored = [onnx.numpy_helper.from_array(x.astype(np.float32), n) for n, x in matrices.items()]
    graph = helper.make_graph(nodes, "products", inputs, outputs, stored)
    imports = [helper.make_opsetid("", 21)]
    return _run(session(helper.make_model(graph, opset_imports=imports, ir_version=10)), feeds)


def square_product(edge: int) -> Callable[[], object]:
    """What the rate of products is told by: a square MatMul of ONNX Runtime."""
    feeds = {name: np.ones((edge, edge), np.float32) for name in "ab"}
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, x.shape) for n, x in feeds.items()
    ]
    output = helper.make_tensor_value_info("c", TensorProto.FLOAT, None)
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    graph = helper.make_graph([node], "product", inputs, [output])
    imports = [helper.make_opsetid("", 21)]
    return _run(session(helper.make_model(graph, opset_imports=imports, ir_version=10)), feeds)


def _run(opened: ort.InferenceSession, feeds: Feeds) -> Callable[[], object]:
    given = {name: ort.OrtValue.ortvalue_from_numpy(feed) for name, feed in feeds.items()}
    names = [output.name for output in opened.get_outputs()]
    return lambda: opened.run_with_ort_values(names, given)


def step(rounds: int) -> dict[str, Spent]:
    """One token, by how the weights are stored."""
    runs = {name: holding(name, 1, PAST, "absorbed") for name in REAL_STORAGES}
    return take_turns({TWO_PRODUCTS: two_products(), ATTENTION: attention_alone(), **runs}, rounds)


def step_figures(spent: Mapping[str, Spent], promised: bool) -> list[Figure]:
    """The products of 4 bits, of what ONNX Runtime's took when they were float32."""
    best, median = _beyond(spent, WANTED)
    target = SHARE * TODAY if promised else None
    what = f"products of a layer, {WANTED}: one token"
    return [Figure(what, 1e6 * best, 1e6 * median, target, at_least=False, unit="us")]


def step_sheet(spent: Mapping[str, Spent]) -> Sheet:
    """All storages."""
    rows = [(TWO_PRODUCTS, spent[TWO_PRODUCTS].best, spent[TWO_PRODUCTS].median)]
    rows += [(name, *_beyond(spent, name)) for name in REAL_STORAGES]
    shown = tuple((name, number(1e6 * best), number(1e6 * median)) for name, best, median in rows)
    title = "W_UK and W_UV of a layer times one token: the node less LatentAttention (one thread)"
    return Sheet(title, ("kv_b", "min us", "median us"), shown)


def _beyond(spent: Mapping[str, Spent], name: str) -> tuple[float, float]:
    alone, whole = spent[ATTENTION], spent[name]
    return whole.best - alone.best, whole.median - alone.median


@dataclasses.dataclass(frozen=True)
class Layer:
    """A prompt of one layer's attention in both forms, and the rate of products in the same run."""

    new: int
    past: int
    forms: Mapping[str, Spent]
    gflops: float

    @property
    def limit(self) -> float:
        """Seconds of all products, keys and values expanded and causal, at that rate."""
        g, total = V2_LITE, self.new + self.past
        made = g.qk_nope_head_dim + g.v_head_dim
        pairs = self.new * self.past + self.new * (self.new + 1) / 2
        numbers = total * g.kv_lora_rank * made + pairs * g.head_width
        return 2 * g.num_heads * numbers / self.gflops / 1e9


def layers(sizes: Sequence[tuple[int, int]], rounds: int, quick: bool) -> list[Layer]:
    """Prompts of some sizes, float32."""
    edge = machine.QUICK_SIZE if quick else machine.SIZE
    found = []
    forms: tuple[Form, ...] = ("absorbed", "expanded")
    for new, past in sizes:
        runs = {str(form): holding("float32", new, past, form) for form in forms}
        spent = take_turns({**runs, PRODUCT: square_product(edge)}, rounds)
        gflops = 2 * edge**3 / spent.pop(PRODUCT).best / 1e9
        found.append(Layer(new, past, spent, gflops))
    return found


def layer_sheet(found: Sequence[Layer]) -> Sheet:
    """All sizes."""
    rows = tuple(
        (
            f"{layer.new} on {layer.past}",
            number(1e3 * layer.forms["absorbed"].best),
            number(1e3 * layer.forms["expanded"].best),
            number(1e3 * layer.limit),
            number(layer.forms["expanded"].best / layer.limit),
            number(layer.gflops),
        )
        for layer in found
    )
    columns = ("new tokens", "absorbed ms", "expanded ms", "limit ms", "of the limit", "GFLOP/s")
    title = f"Attention of one layer with its weights, {cpu_tiers()[0]} (one thread)"
    return Sheet(title, columns, rows)
