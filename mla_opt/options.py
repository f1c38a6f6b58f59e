"""What a user may ask of an optimization, checked, and the pipeline that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from mla_opt import passes
from mla_opt.errors import InputError
from mla_opt.option_text import parse_cache
from mla_opt.pipeline import Pass, Pipeline
from mla_opt.sites import PrefillForm

Target = Literal["onnxruntime", "portable", "onnxruntime-paged", "tensorrt"]
Phase = Literal["prefill", "decode"]
CacheType = Literal["keep", "float16", "bfloat16", "int8", "fp8"]
Weights = Literal["auto", "float", "keep"]
MatmulNbits = Literal["keep", "kernel"]
#: TensorScatter is there since 24, Attention since 23, 8-bit floats since 19, CastLike since 15.
TENSORRT_OPSET = 24
OPSET_OF_CODES = {"int8": 15, "fp8": 19}

Absorb = Literal["auto", "factored", "fold-q", "fold-o", "fold", "none"]

REWRITES, HOLD_WEIGHTS = "absorb_weights", "hold_weights"


@dataclass(frozen=True, slots=True)
class Options:
    """Options of one optimization.

    Attributes:
        target: ``onnxruntime`` for the fused operator with its body, ``portable`` for standard
            operators only, ``tensorrt`` for the graph of one ``phase`` of an engine,
            ``onnxruntime-paged`` for ONNX Runtime's own PagedAttention over packed tokens.
        absorb: what becomes of W_UK and W_UV; ``auto`` asks the cost model.
        cache: ``keep``, ``packed``, ``even``, ``static`` or ``static:ROWS``; 8k rows are 8192.
        prefill: the form for long queries.
        cache_type: what the rows of a float32 model's cache are rounded to; ``int8`` and ``fp8``
            (e4m3) keep c_kv in codes with scales, and k_pe in bfloat16.
        passes: names of passes to run instead of the default ones.
        phase: which of the two graphs, for ``tensorrt``.
        keep_activation_quantization: whether an attention whose activations are quantized is
            refused, in place of being rewritten without that.
        plugin: whether TensorRT runs the operator by the plugin, where that has a kernel for the
            widths C and R, or by standard operators.
        weights: ``keep`` lets one operator hold W_UK and W_UV in the bits that the model stores
            them in, ``float`` stores them anew in the type of the queries. ``auto`` keeps them
            wherever the target has that operator and nothing folds them.
        matmul_nbits: ``kernel`` lets the kernel library run the quantized layers of the model that
            are MatMulNBits of accuracy level 4; ``keep`` leaves them as they are.
    """

    target: Target = "onnxruntime"
    absorb: Absorb = "auto"
    cache: str = "keep"
    prefill: PrefillForm = "auto"
    cache_type: CacheType = "keep"
    passes: Sequence[str] | None = None
    phase: Phase = "decode"
    plugin: bool = True
    keep_activation_quantization: bool = False
    weights: Weights = "auto"
    matmul_nbits: MatmulNbits = "keep"

    def __post_init__(self) -> None:
        kinds = {
            "target": Target,
            "absorb": Absorb,
            "prefill": PrefillForm,
            "cache_type": CacheType,
            "phase": Phase,
            "weights": Weights,
            "matmul_nbits": MatmulNbits,
        }
        for name, kind in kinds.items():
            allowed = get_args(kind)
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}, not {_listed(allowed)}")
        if self.cache_mode()[0] == "static" and self.absorb == "none":
            raise InputError("cache static needs absorbed attention; absorb is 'none'")
        if self.cache_type != "keep" and self.absorb == "none":
            raise InputError(f"cache type {self.cache_type} needs absorbed attention, not 'none'")
        if self.is_quantized and not self.is_paged:
            self._check_quantized()
        self._check_prefill()
        self._check_weights()
        if self.matmul_nbits == "kernel" and self.target != "onnxruntime":
            raise InputError(f"matmul_nbits kernel is for target onnxruntime, not {self.target}")
        if self.target == "tensorrt":
            self._check_tensorrt()
        if self.is_paged:
            self._check_paged()

    def _check_prefill(self) -> None:
        """What was asked for by name is done, or refused."""
        prompts_only = self.target == "tensorrt" and self.phase == "prefill"
        if self.prefill == "expanded" and not prompts_only:
            if self.absorb in ("fold-q", "fold-o", "fold"):
                raise InputError(
                    f"prefill expanded is not for absorb {self.absorb}: folded weights cannot be"
                    " expanded without storing them twice; use absorb factored, or prefill auto"
                )
            if self.cache_mode()[0] == "static" and not self.holds_weights:
                raise InputError(
                    "prefill expanded is for cache static only where the operator holds its"
                    f" weights, which it does not for target {self.target} with weights"
                    f" {self.weights}; use weights keep, cache keep, packed or even,"
                    " or prefill auto"
                )
        if self.prefill == "absorbed" and self.absorb == "none":
            raise InputError("prefill absorbed needs absorbed attention; absorb is 'none'")

    @property
    def is_quantized(self) -> bool:
        """Whether the rows of the cache become codes with scales."""
        return self.cache_type in ("int8", "fp8")

    def _check_quantized(self) -> None:
        """Two tensors in the place of the model's own, which every call attends to as they are."""
        if self.cache_mode()[0] in ("keep", "even"):
            has = "two halves of a row" if self.cache == "even" else "the model's own cache"
            raise InputError(
                f"cache type {self.cache_type} needs cache packed or static: scales have no place"
                f" in {has}, which {self.cache} has"
            )
        if self.prefill == "expanded" and not self.holds_weights:
            raise InputError(
                f"prefill expanded is not for cache type {self.cache_type}, whose rows are attended"
                " to as they are, absorbed; use weights keep, or prefill auto"
            )

    def _check_weights(self) -> None:
        if self.weights != "keep":
            return
        if self.absorb not in ("auto", "factored"):
            raise InputError(f"weights keep is not for absorb {self.absorb}, which stores others")
        if self.target != "onnxruntime":
            raise InputError(f"weights keep is for target onnxruntime, not {self.target}")

    def _check_tensorrt(self) -> None:
        mode, capacity = self.cache_mode()
        if mode != "static" or capacity is None:
            raise InputError(f"target tensorrt needs cache static:ROWS, not {self.cache}")
        if self.cache_type != "keep":
            raise InputError(
                f"cache type {self.cache_type} is not for target tensorrt, whose caches have the"
                " precision of the engine"
            )

    @property
    def is_paged(self) -> bool:
        """Whether the caches are blocks, and the tokens of all sequences come packed."""
        return self.target == "onnxruntime-paged"

    def _check_paged(self) -> None:
        """The operator has a cache of its own layout, and one form."""
        if self.cache != "keep":
            raise InputError(
                f"cache {self.cache} is not for target onnxruntime-paged, whose caches are blocks;"
                " leave the option out"
            )
        if self.absorb == "none":
            raise InputError("target onnxruntime-paged needs absorbed attention; absorb is 'none'")
        if self.prefill == "expanded":
            raise InputError(
                "prefill expanded is not for target onnxruntime-paged, whose operator attends to"
                " latent rows; use prefill auto"
            )

    @property
    def least_opset(self) -> int:
        """The opset that has what the target and the type of the cache need; 0: any."""
        if self.target == "tensorrt":
            return TENSORRT_OPSET
        if self.is_paged and self.cache_type == "int8":  # the operator makes the codes
            return 0
        return OPSET_OF_CODES.get(self.cache_type, 0)

    @property
    def holds_weights(self) -> bool:
        """Whether an operator is to hold W_UK and W_UV, where nothing folds them."""
        if self.weights == "auto":
            return self.target == "onnxruntime" and self.absorb in ("auto", "factored")
        return self.weights == "keep"

    def cache_mode(self) -> tuple[str, int | None]:
        """The cache mode, and the capacity where one is given."""
        try:
            return parse_cache(self.cache)
        except InputError as error:
            raise InputError(f"cache: {error}") from error

    def pipeline(self) -> Pipeline:
        """The passes to run, with their options."""
        names = self._default_passes() if self.passes is None else self.passes
        _check_order(names)
        # Passes that only look are told what those that rewrite would do.
        rewrites = REWRITES in names
        held = HOLD_WEIGHTS in names or (self.holds_weights and not rewrites)
        return Pipeline([self._make(passes.load(name), held) for name in names])

    def _default_passes(self) -> Sequence[str]:
        return passes.names(
            portable=self.target == "portable",
            static=self.cache_mode()[0] == "static",
            narrow=self.cache_type in ("float16", "bfloat16") and not self.is_paged,
            quantize=self.is_quantized and not self.is_paged,
            paged=self.is_paged,
            hold_weights=self.holds_weights,
            tensorrt=self.phase if self.target == "tensorrt" else None,
            matmul_nbits=self.matmul_nbits == "kernel",
        )

    def _make(self, kind: type[Pass], held: bool) -> Pass:
        mode, capacity = self.cache_mode()
        tensorrt = self.target == "tensorrt"
        expands = tensorrt and self.phase == "prefill"
        given: dict[str, dict[str, Any]] = {
            "choose_form": {
                "absorb": "factored" if expands or self.weights == "keep" else self.absorb,
                "prefill": "absorbed" if self.is_paged else self.prefill,
                "in_place": mode == "static",
                "quantized": self.is_quantized,
                "held": held,
            },
            "check_roundings": {"keep": self.keep_activation_quantization},
            "compress_cache": {"mode": "packed" if self.is_paged else mode},
            "narrow_cache": {"cache_type": "keep" if self.is_quantized else self.cache_type},
            "quantize_cache": {"cache_type": self.cache_type if self.is_quantized else "keep"},
            "write_cache_in_place": {
                "capacity": capacity,
                "count": "shapes" if tensorrt else "lengths",
            },
            "lower_to_tensorrt": {
                "phase": self.phase,
                "plugin": self.plugin,
                "capacity": capacity,
            },
            "lower_to_paged_attention": {"cache_type": self.cache_type},
        }
        return kind(**given.get(kind.name, {}))

    def as_dict(self) -> dict[str, object]:
        """The options, for a report."""
        return asdict(self)


def _check_order(names: Sequence[str]) -> None:
    """Built-in passes build on each other: each at most once, in their order; others anywhere."""
    places = list(passes.BUILT_IN)
    own = [name for name in names if name in passes.BUILT_IN]
    for before, after in pairwise(own):
        if places.index(before) >= places.index(after):
            raise InputError(
                f"passes: {after} cannot run after {before}; the order is {', '.join(places)}"
            )


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
