"""What is measured: the models, the cases and the targets, in full and in little."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from mla_opt.benchmarking.participants import ORIGINAL
from tests.benchmarks import dims, figures
from tests.benchmarks.dims import Dims
from tests.benchmarks.runner import Case
from tests.benchmarks.whole import IK_LLAMA, LLAMA, LLAMA_8, Place, Whole

#: Ratios wanted of one decode step, by past length.
DECODE_TARGETS: dict[int, dict[str, float]] = {
    1024: {"whole": 15.0, "absorption": 7.0},
    8192: {"whole": 100.0, "absorption": 22.0, "expanded": 8.0},
    32768: {"whole": 150.0, "absorption": 35.0},
}
#: Times of all products that a prompt into a static cache may take: new tokens, and those before.
STATIC_TARGETS = {
    (512, 0): 1.15,
    (2048, 0): 1.2,
    (8192, 0): 1.3,
    (32768, 0): 1.5,
    (512, 8192): 1.2,
    (512, 32768): 1.2,
}
#: Of the original's speed and memory, for the function body alone.
BODY_TARGET = 1.0
PREFILL_TARGETS = {0: 1.0, 4096: 1.8}
MEMORY_TARGET = 10.0
V3_TARGET = 60.0
#: Of the limit, for a prompt through one layer of DeepSeek-V3.
V3_PROMPT_TARGET = 1.3
EXTRA_SECONDS_TARGET = 5.0
#: The depth that `EXTRA_SECONDS_TARGET` is about.
EXTRA_SECONDS_LAYERS = 27
#: `optimize_time.bend` below this counts as linear.
BEND_TARGET = 1.3

LATENT = (figures.ORIGINAL, figures.CLEAN, figures.CLEAN_BY_HAND, figures.OPTIMIZED)
LATENT_DECODE = (*LATENT, figures.ABSORBED_BY_HAND)
STATIC = (figures.ORIGINAL, figures.OPTIMIZED, figures.STATIC, figures.STATIC_BODY)
WITH_KERNEL = (figures.KERNEL, figures.KERNEL_ABSORBED, figures.KERNEL_EXPANDED)
SWEEP = (figures.ORIGINAL, figures.CLEAN, figures.CLEAN_BY_HAND, *WITH_KERNEL)
ENDS = (figures.ORIGINAL, figures.OPTIMIZED)


def prompt(new: int, past: int, rounds: int, only: Sequence[str] = STATIC, model: str = "") -> Case:
    """A prompt into a static cache."""
    name = f"{model}prompt of {new} on {past}"
    chosen = tuple(only)
    return Case(
        name, past, new=new, rounds=rounds, turn_ms=0, only=chosen, kernel=(figures.STATIC,)
    )


def sweep(news: Sequence[int], pasts: Sequence[int], rounds: int) -> tuple[Case, ...]:
    """Numbers of new tokens around the one from which expansion pays."""
    return tuple(
        Case(
            f"{new} new on {past} past",
            past,
            new=new,
            rounds=rounds,
            only=SWEEP,
            kernel=WITH_KERNEL,
        )
        for past in pasts
        for new in news
    )


@dataclasses.dataclass(frozen=True)
class Core:
    """What the kernel is given by itself: every number of heads on every number of keys."""

    heads: tuple[int, ...]
    keys: tuple[int, ...]
    rounds: int


@dataclasses.dataclass(frozen=True)
class Products:
    """The operator that holds its weights, by itself: rounds of a step, and prompts."""

    rounds: int
    sizes: tuple[tuple[int, int], ...]
    prompt_rounds: int


@dataclasses.dataclass(frozen=True)
class Suite:
    """Everything one command measures."""

    lite: Dims
    v3: Dims
    scaling: Callable[[int], Dims]
    decode: tuple[Case, ...]
    memory: Case
    prefill: tuple[Case, ...]
    v3_decode: Case
    sweep: tuple[Case, ...]
    core: Core
    static: tuple[Case, ...]
    v3_prompt: Case
    prompts: tuple[int, ...]
    products: Products
    depths: tuple[int, ...]
    whole: Whole
    whole_lite: Whole
    two_layers: tuple[Whole, ...]
    promised: bool

    def decode_targets(self, case: Case) -> Mapping[str, float]:
        """Targets of a decode case; none in the small suite."""
        return DECODE_TARGETS.get(case.past, {}) if self.promised else {}

    def target(self, value: float | None) -> float | None:
        """`value`, or None in the small suite."""
        return value if self.promised else None


#: Those with latent caches.
BOTH = (LLAMA, IK_LLAMA)


def against(
    others: tuple[str, ...], factors: Mapping[int, float]
) -> dict[tuple[str, int, int], float]:
    """The same targets of a token for each of them, by tokens in the cache."""
    return {(who, context, 1): by for who in others for context, by in factors.items()}


def tokens_on(*contexts: int) -> tuple[Place, ...]:
    """A token on so many others each."""
    return tuple(Place(context, 1, BOTH) for context in contexts)


def tiny_whole(model: str, others: tuple[str, ...], *, expanded: bool) -> Whole:
    """A small model, everybody at all places."""
    everybody = (ORIGINAL, *others)
    places = Place(16, 1, everybody), Place(64, 1, others), Place(0, 24, everybody)
    return Whole(model, ("keep",), places, rounds=1, seconds=5.0, expanded=expanded)


FULL = Suite(
    lite=dims.LITE,
    v3=dims.V3,
    scaling=dims.scaling,
    decode=(
        Case("decode, 1k past", 1024, rounds=12),
        Case("decode, 8k past", 8192, rounds=6),
        Case("decode, 32k past", 32768, rounds=4, turn_ms=120.0, only=LATENT_DECODE),
    ),
    memory=Case("memory, 32k past", 32768, rounds=3, turn_ms=0, only=ENDS),
    prefill=(
        Case("prefill of 512, no past", 0, new=512, rounds=8, only=LATENT),
        Case("prefill of 512, 4k past", 4096, new=512, rounds=5, only=LATENT),
    ),
    v3_decode=Case("V3 layer, decode, 8k past", 8192, rounds=3, turn_ms=120.0),
    sweep=sweep((1, 16, 64, 128, 171, 256, 512, 2048), (0, 4096), rounds=5),
    core=Core((16, 128), (8192, 32768), rounds=8),
    static=(
        prompt(512, 0, 6),
        prompt(2048, 0, 4),
        prompt(4096, 0, 3),
        prompt(512, 4096, 3),
        prompt(8192, 0, 3, (figures.STATIC,)),
        prompt(512, 8192, 5, (figures.STATIC,)),
        prompt(512, 32768, 3, (figures.STATIC,)),
    ),
    v3_prompt=prompt(2048, 0, 3, (figures.STATIC,), "V3 layer, "),
    prompts=(4096, 8192, 32768),
    products=Products(200, ((512, 0), (2048, 0), (512, 8192)), 3),
    depths=(7, 14, 27, 61),
    whole=Whole(
        "minicpm3-4b",
        cache_types=("keep", "bfloat16"),
        places=(
            Place(1024, 1, (ORIGINAL, LLAMA)),
            Place(8192, 1, (ORIGINAL, LLAMA)),
            Place(32768, 1, (LLAMA_8,), apart=True),
            Place(0, 2048, (ORIGINAL, LLAMA), apart=True),
        ),
        rounds=4,
        seconds=60.0,
        targets={
            (ORIGINAL, 8192, 1): 40.0,
            (LLAMA, 1024, 1): 1.2,
            (LLAMA, 8192, 1): 2.5,
            (LLAMA_8, 32768, 1): 3.0,
        },
    ),
    whole_lite=Whole(
        "v2-lite-dense",
        cache_types=("keep", "bfloat16"),
        places=(*tokens_on(1024, 8192, 32768), Place(0, 2048, BOTH)),
        rounds=4,
        seconds=60.0,
        expanded=False,
        targets=against(BOTH, {1024: 1.1, 8192: 1.3, 32768: 1.5}),
    ),
    two_layers=tuple(
        Whole(
            "v2-lite-two",
            cache_types=("keep", "bfloat16", "int8"),
            places=(
                *tokens_on(1024, 8192, 32768),
                *(Place(0, query, BOTH) for query in prompts),
            ),
            rounds=6,
            seconds=90.0,
            expanded=False,
            threads=threads,
            targets=against((LLAMA,), {1024: 1.2, 8192: 2.5, 32768: 4.0})
            | against((IK_LLAMA,), {1024: 1.1, 8192: 1.3, 32768: 1.5})
            | {(IK_LLAMA, 0, new): by for new, by in ((512, 1.0), (2048, 1.1), (8192, 1.25))},
        )
        for threads, prompts in ((2, (512, 2048, 8192)), (1, ()))
    ),
    promised=True,
)

QUICK = Suite(
    lite=dims.TINY,
    v3=dims.TINY_V3,
    scaling=dims.tiny_scaling,
    decode=(
        Case("decode, 16 past", 16, rounds=2, turn_ms=0),
        Case("decode, 64 past", 64, rounds=2, turn_ms=0, only=LATENT_DECODE),
    ),
    memory=Case("memory, 64 past", 64, rounds=1, turn_ms=0, only=ENDS),
    prefill=(
        Case("prefill of 8, no past", 0, new=8, rounds=2, turn_ms=0, only=LATENT),
        Case("prefill of 8, 16 past", 16, new=8, rounds=2, turn_ms=0, only=LATENT),
    ),
    v3_decode=Case("small V3 layer, decode, 16 past", 16, rounds=2, turn_ms=0),
    sweep=sweep((1, 24), (0, 16), rounds=2),
    core=Core((16,), (1024,), rounds=1),
    static=(prompt(8, 0, 1), prompt(8, 16, 1)),
    v3_prompt=prompt(8, 0, 1, (figures.STATIC,), "small V3 layer, "),
    prompts=(16, 64),
    products=Products(2, ((16, 0),), 1),
    depths=(1, 2),
    whole=tiny_whole("minicpm3-tiny", (LLAMA,), expanded=True),
    whole_lite=tiny_whole("v2-lite-tiny", BOTH, expanded=False),
    two_layers=(tiny_whole("v2-lite-tiny", BOTH, expanded=False),),
    promised=False,
)
