"""Optimize a model without verification and compare both in ONNX Runtime: equal, or refused.

The comparison knows nothing of the optimizer but which caches it replaced, which it says in the
result's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

import mla_opt
from mla_opt.errors import InputError, NothingMatchedError
from tests.axes.feeding import Array, Feeds, Inputs, Kind, Size, stored_floats, understand

Status = Literal["equal", "refused", "wrong", "crash", "not runnable"]

SIZES = (
    Size(1, 1, 0),
    Size(2, 5, 0, "ragged"),
    Size(1, 3, 4),
    Size(2, 1, 7, "random"),
    Size(3, 2, 12, "ragged"),
    Size(5, 1, 3),
    Size(4, 7, 2, "random"),
    Size(5, 40, 1, "ragged"),
    Size(3, 13, 45, "random"),
    Size(1, 300, 0),
    Size(2, 210, 33, "ragged"),
    Size(1, 4, 1100),
    Size(3, 1, 1500, "ragged"),
    Size(1, 120, 1010, "random"),
    Size(1, 300, 701, "open"),
    Size(1, 1100, 0),
)
"""Around every length that a rewrite or a look-alike might count to."""

FEW = (SIZES[1], SIZES[3], Size(5, 3, 2, "ragged"), Size(1, 230, 1), Size(1, 2, 1099, "random"))
"""Most of what `SIZES` shows, for models that are drawn by the thousand."""

TOLERANCE = {"float64": 1e-5, "float32": 1e-4, "float16": 3e-2, "bfloat16": 1e-1}
"""Largest deviation, relative to the largest number of an output, by the coarsest stored type."""

CHUNK = 300
CALLS_FROM_EMPTY = 6


@dataclass(frozen=True)
class Outcome:
    """What became of one model.

    Attributes:
        status: ``refused`` where nothing was rewritten; ``not runnable`` where the original runs
            at no size that was tried, so that nothing can be said.
        codes: of the refusals, also of a model that was rewritten in part.
        matched: attentions rewritten.
        error: the largest deviation found, relative per output.
        where: the output and size of it, or what failed.
        ran: sizes compared.
    """

    status: Status
    codes: tuple[str, ...] = ()
    matched: int = 0
    error: float = 0.0
    where: str = ""
    ran: int = 0

    @property
    def wrong(self) -> bool:
        return self.status in ("wrong", "crash")


@dataclass
class Runner:
    """One model in ONNX Runtime, and what its inputs mean."""

    model: onnx.ModelProto
    inputs: Inputs
    session: Any = field(init=False)

    def __post_init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = ort.InferenceSession(
            self.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name."""
        wanted = {name: given[name] for name in (port.name for port in self.inputs.ports)}
        outputs = self.session.run(None, wanted)
        return dict(zip(self.inputs.outputs, outputs))


def random_sizes(seed: int, count: int = 4) -> tuple[Size, ...]:
    """Some sizes more: B 1 to 5, S 1 to 300, past 0 to 1500, most of them small."""
    rng = np.random.default_rng(seed)
    kinds: tuple[Any, ...] = ("causal", "ragged", "random", "open")
    return tuple(
        Size(
            int(rng.integers(1, 6)),
            int(np.exp(rng.uniform(0, np.log(300)))),
            int(np.exp(rng.uniform(0, np.log(1500)))) - 1,
            kinds[rng.integers(4)],
        )
        for _ in range(count)
    )


def equal_or_refused(
    model: onnx.ModelProto,
    *,
    sizes: Sequence[Size] = SIZES,
    kinds: Mapping[str, Kind] | None = None,
    seed: int = 0,
    **options: Any,
) -> Outcome:
    """Optimize ``model`` unverified, and compare what comes out at all ``sizes`` it takes.

    Args:
        model: as exported or written; it is not changed.
        sizes: of the calls; caches that were replaced are filled by calls from an empty past.
        kinds: what inputs are for, where name and shape do not tell.
        seed: of the random inputs.
        options: for :func:`mla_opt.optimize`.
    """
    try:
        result = mla_opt.optimize(model, verify=False, **options)
        rewritten = ir.to_proto(result.model)
    except NothingMatchedError as error:
        refusals = error.report.refusals if error.report is not None else ()
        codes = tuple(sorted(refusal.code for refusal in refusals))
        return Outcome("refused", codes, where=_refused(error, refusals))
    except InputError as error:
        return Outcome("refused", ("input",), where=str(error))
    except Exception as error:
        return Outcome("crash", where=_first_line(error))
    codes = tuple(sorted(refusal.code for refusal in result.report.refusals))
    return _compared(model, rewritten, sizes, kinds, seed, (codes, len(result.report.sites)))


def _refused(error: NothingMatchedError, refusals: Sequence[Any]) -> str:
    if not refusals:
        return str(error)
    return f"{refusals[0].reason} ({', '.join(refusals[0].nodes[:3])})"


def _compared(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    sizes: Sequence[Size],
    kinds: Mapping[str, Kind] | None,
    seed: int,
    found: tuple[tuple[str, ...], int],
) -> Outcome:
    codes, matched = found
    try:
        original = Runner(before, understand(before, kinds))
    except Exception as error:
        return Outcome("not runnable", codes, matched, where=_first_line(error))
    try:
        pair = Pair(original, Runner(after, understand(after, kinds)), seed)
    except Exception as error:
        return Outcome("wrong", codes, matched, np.inf, f"does not load: {_first_line(error)}")
    worst, ran, failure = (0.0, ""), 0, ""
    for size in sizes:
        if not pair.fits(size):
            continue
        try:
            error_at = pair.deviation(size)
        except OriginalError as error:
            failure = f"{size}: {error}"
            continue
        except Exception as error:
            error_at = (np.inf, f"does not run at {size}: {_first_line(error)}")
        ran += 1
        worst = max(worst, error_at)
    if not ran:
        return Outcome("not runnable", codes, matched, where=failure or "no size fits")
    limit = max(TOLERANCE[name] for name in stored_floats(before) or {"float32"})
    status: Status = "equal" if worst[0] <= limit else "wrong"
    return Outcome(status, codes, matched, float(worst[0]), worst[1], ran)


class OriginalError(Exception):
    """The original does not run at a size."""


@dataclass
class Pair:
    """Both models, fed alike."""

    before: Runner
    after: Runner
    seed: int
    changed: Changed = field(init=False)

    def __post_init__(self) -> None:
        self.changed = Changed.of(self.after.model)

    def fits(self, size: Size) -> bool:
        """Whether both take this size."""
        given = self.before.inputs.fits(size) and self.after.inputs.fits(size)
        return given and size.total <= (self.changed.capacity or size.total)

    def deviation(self, size: Size) -> tuple[float, str]:
        """The largest deviation over all outputs that both have, and where."""
        if self.changed.any:
            return self._from_empty(size)
        given = Feeds(self.before.inputs, size, self.seed).draw()
        return self._call(given, given, size)[0]

    def _call(
        self, given: dict[str, Array], also: dict[str, Array], size: Size
    ) -> tuple[tuple[float, str], dict[str, Array], dict[str, Array]]:
        try:
            expected = self.before.run(given)
        except Exception as error:
            raise OriginalError(_first_line(error)) from error
        seen = self.after.run(also)
        own = self.changed.outputs
        names = [name for name in expected if name not in own]
        errors = [
            (deviation(expected[name], seen.get(name)), f"{name} at {size}") for name in names
        ]
        return max(errors, default=(0.0, "")), expected, seen

    def _from_empty(self, size: Size) -> tuple[float, str]:
        """Fill both caches by calls of their own, the last one of the size asked for."""
        rows = self.changed.capacity or size.total + 3
        before, after, past = self._empty(self.before, size, 0), {}, 0
        after = self._empty(self.after, size, rows)
        worst = (0.0, "")
        for query in (*_chunks(size.past), size.query):
            step = Size(size.batch, query, past, size.masks)
            drawn = Feeds(self.before.inputs, step, self.seed).draw()
            also = Feeds(self.after.inputs, step, self.seed).draw()
            shared = {name: array for name, array in drawn.items() if name in also}
            error, made, other = self._call(drawn | before, also | shared | after, step)
            worst = max(worst, error)
            before = self.changed.next(self.before.inputs, made, "original")
            after = self.changed.next(self.after.inputs, other, "optimized")
            past += query
        return worst

    def _empty(self, runner: Runner, size: Size, rows: int) -> dict[str, Array]:
        """Caches without a row; buffers with ``rows`` of zeros, where caches were made such."""
        counts = {name: rows for name in self.changed.optimized if self.changed.in_place}
        shapes = {
            port: runner.inputs.shape(port, Size(size.batch, size.query, counts.get(port.name, 0)))
            for port in runner.inputs.of("cache")
        }
        return {port.name: np.zeros(shape, port.dtype) for port, shape in shapes.items()}


def _chunks(past: int) -> list[int]:
    """Calls that make up a past, with a single token among them."""
    if not past:
        return []
    first = min(past, 3)
    rest = past - first
    whole = [CHUNK] * (rest // CHUNK) + ([rest % CHUNK] if rest % CHUNK else [])
    return [first, *whole]


@dataclass(frozen=True)
class Changed:
    """The caches that the optimizer replaced: input to output, for each model."""

    original: Mapping[str, str]
    optimized: Mapping[str, str]
    in_place: bool
    capacity: int | None

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Changed:
        """Read what the result says of itself."""
        said = {each.key: each.value for each in model.metadata_props}
        content = json.loads(said.get("mla_opt.interface", '{"states": []}'))
        pairs: dict[str, dict[str, str]] = {"original": {}, "optimized": {}}
        for state in content["states"]:
            for side, known in pairs.items():
                known.update(zip(state[side]["inputs"], state[side]["outputs"]))
        return cls(
            **pairs,
            in_place=any(state["layout"] == "static" for state in content["states"]),
            capacity=content.get("capacity"),
        )

    @property
    def any(self) -> bool:
        return bool(self.original)

    @property
    def outputs(self) -> set[str]:
        """Those that only one of both has, or that mean something else."""
        return {*self.original.values(), *self.optimized.values()}

    def next(self, inputs: Inputs, made: Mapping[str, Array], side: str) -> dict[str, Array]:
        """The caches of the next call; those that were not replaced go by order and shape."""
        known = dict(self.original if side == "original" else self.optimized)
        left = [name for name in made if _is_state(name) and name not in known.values()]
        for port in inputs.of("cache"):
            if port.name not in known and left:
                known[port.name] = left.pop(0)
        return {port.name: made[known[port.name]] for port in inputs.of("cache")}


def _is_state(name: str) -> bool:
    return any(word in name.lower() for word in ("present", "cache", "state", "new_"))


def deviation(expected: Array, seen: Array | None) -> float:
    """The largest difference, by the largest number; what the original leaves open is not held."""
    if seen is None or seen.shape != expected.shape or seen.dtype != expected.dtype:
        return float("inf")
    if not expected.size or expected.dtype.kind not in "fV":
        return 0.0 if np.array_equal(expected, seen) else float("inf")
    wanted, got = expected.astype(np.float64), seen.astype(np.float64)
    known = np.isfinite(wanted)
    if not np.isfinite(got[known]).all():
        return float("inf")
    scale = np.abs(wanted[known]).max(initial=0.0)
    difference = np.abs(wanted[known] - got[known]).max(initial=0.0)
    return float(difference / scale) if scale else float(difference)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300] if text else ''}"
