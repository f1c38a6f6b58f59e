"""What a loader has to know of a model: what to feed it, and which buffers it keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from mla_opt.bundles.manifest import Cache, Counted, Fed, Layer, Role
from mla_opt.engines.manifest import Tensor
from mla_opt.errors import InputError
from mla_opt.graphs.interface.decoding import logits_port, token_port, vocabulary_of
from mla_opt.graphs.interface.dims import Axis
from mla_opt.graphs.interface.feeds import is_additive, lowest, numpy_dtype
from mla_opt.graphs.interface.interface import ModelInterface, Port
from mla_opt.verification.interface_map import InterfaceMap
from mla_opt.verification.oracle import Driver, optimized_driver

#: Rows of buffers whose size nobody fixes.
ROWS = 4096
#: Tokens of a prompt that go in at once: more take more memory, and less time for each no more.
MOST_NEW = 512
#: What both loaders can write and read.
FED_TYPES = ("int64", "int32", "bool", "float32", "float16", "float64")
LOGITS_TYPES = ("float32", "float16", "float64")


@dataclass(frozen=True, slots=True)
class Description:
    """The part of the manifest that follows from the model."""

    inputs: tuple[Fed, ...]
    logits: Tensor
    vocabulary: int | None
    caches: tuple[Cache, ...]
    layers: tuple[Layer, ...]
    rows: int
    most_new: int


def describe(model: ir.Model, label: str, rows: int | None = None) -> Description:
    """Describe an optimized model; ``rows`` are those of buffers whose size it leaves open.

    Raises:
        InputError: its caches are no buffers of a fixed size, or the loaders cannot run it.
    """
    changes = InterfaceMap.of(model)
    driver = optimized_driver(model, changes)
    interface = driver.interface
    token_port(interface, label, {driver.past_len_input})
    _check_states(interface, label)
    most_new = _most_new(interface, label, changes)
    capacity = _rows(interface, label, rows)
    logits = logits_port(interface, label)
    return Description(
        inputs=tuple(_inputs(driver, label)),
        logits=Tensor(logits.name, _dtype(logits, LOGITS_TYPES, label), logits.sizes),
        vocabulary=vocabulary_of(interface, logits),
        caches=tuple(_caches(interface, label, capacity)),
        layers=tuple(
            Layer(each.layer, each.num_heads, each.kv_lora_rank, each.qk_rope_head_dim)
            for each in changes.states
        ),
        rows=capacity,
        most_new=most_new,
    )


def _check_states(interface: ModelInterface, label: str) -> None:
    """A bundle keeps buffers of rows, and nothing else from call to call."""
    kinds = {state.input.name: state.kind for state in interface.states}
    if "buffer" not in kinds.values():
        raise InputError(
            f"{label}: its caches grow with every call, and a bundle keeps buffers of a fixed size;"
            " give the model as it was exported, or make the buffers with"
            " `mla-opt optimize MODEL --cache static:ROWS`"
        )
    others = [name for name, kind in kinds.items() if kind != "buffer"]
    if others:
        raise InputError(
            f"{label}: also keeps {', '.join(others)}, which is no cache of latent rows; a bundle"
            " is made of models that keep nothing else. mla_opt.runtimes.onnxruntime runs this one"
        )


def _most_new(interface: ModelInterface, label: str, changes: InterfaceMap) -> int:
    """How many tokens go in at once, of one sequence."""
    limits = interface.limits()
    if changes.prompts_only:
        raise InputError(f"{label}: takes whole prompts only, and so generates nothing")
    if limits.batch not in (None, 1):
        raise InputError(
            f"{label}: takes {limits.batch} sequences in every call, and the loaders run one;"
            " export it with a batch that may change"
        )
    if limits.query_len not in (None, 1) or limits.total_len is not None:
        fixed = "number of new tokens" if limits.total_len is None else "length of the mask"
        raise InputError(
            f"{label}: its {fixed} is fixed, so it takes no prompt and then single tokens; export"
            " it with sizes that may change"
        )
    return limits.query_len or MOST_NEW


def _rows(interface: ModelInterface, label: str, rows: int | None) -> int:
    """Rows of the buffers: what the file says, else what was asked for."""
    sizes = {
        size
        for state in interface.states
        if isinstance(size := state.input.sizes[state.growth_axis or 0], int)
    }
    if len(sizes) > 1:
        counts = " and ".join(map(str, sorted(sizes)))
        raise InputError(f"{label}: has buffers of {counts} rows; the loaders take one number")
    fixed = next(iter(sizes), None)
    if fixed is not None and rows not in (None, fixed):
        raise InputError(
            f"{label}: has buffers of {fixed} rows, and is taken as it is: leave --rows out, or"
            " give the model as it was exported"
        )
    return fixed or rows or ROWS


def _caches(interface: ModelInterface, label: str, rows: int) -> Iterator[Cache]:
    shapes = interface.bind(1, interface.limits().query_len or 1, 0, rows)
    for state in interface.states:
        name, shape = state.input.name, shapes[state.input.name]
        if len(shape) != 4 or shape[:3] != (1, 1, rows):
            raise InputError(
                f"{label}: cache {name!r} is {list(shape)} for one sequence, where the loaders keep"
                f" [1, 1, {rows}, width]"
            )
        dtype = numpy_dtype(state.input)
        number = int(ir.DataType.from_numpy(dtype))
        taken = math.prod(shape) * dtype.itemsize
        yield Cache(name, state.output.name, str(dtype.name), number, shape, taken)


def _inputs(driver: Driver, label: str) -> Iterator[Fed]:
    interface = driver.interface
    roles: list[tuple[Role, tuple[Port, ...]]] = [
        ("tokens", (token_port(interface, label, {driver.past_len_input}),)),
        ("mask", () if interface.attention_mask is None else (interface.attention_mask,)),
        ("positions", interface.positions),
        ("start", (*interface.starts, *interface.others)),
    ]
    for role, ports in roles:
        for port in ports:
            yield _fed(port, role, label)


def _fed(port: Port, role: Role, label: str) -> Fed:
    if port.axes is None:
        raise InputError(f"{label}: does not say how many dimensions input {port.name!r} has")
    dtype = _dtype(port, FED_TYPES, label)
    shape = tuple(map(_size, port.axes))
    if role == "mask" and is_additive(port):
        return Fed(port.name, dtype, role, shape, 0.0, lowest(numpy_dtype(port)))
    return Fed(port.name, dtype, role, shape, float(not port.hides), float(bool(port.hides)))


def _size(axis: Axis) -> int | Counted:
    """The size of a dimension for one sequence."""
    if axis.role == "query_len":
        return "query_len"
    if axis.role == "total_len":
        return "total_len"
    if axis.role in ("batch", "broadcast") or not isinstance(axis.size, int):
        return 1
    return axis.size


def _dtype(port: Port, allowed: tuple[str, ...], label: str) -> str:
    name = str(numpy_dtype(port).name)
    if name not in allowed:
        raise InputError(
            f"{label}: {port.name!r} is {name}, and the loaders take {', '.join(allowed)} there"
        )
    return name
