"""The cost model against the figures that were worked out by hand and measured."""

from __future__ import annotations

import pytest

from mla_opt import cost_model
from mla_opt.cost_model import HARDWARE, Hardware, Prefill, Workload
from mla_opt.geometry import MlaGeometry

V2_LITE = MlaGeometry(16, 128, 64, 128, 512, None, 2048)
V2 = MlaGeometry(128, 128, 64, 128, 512, 1536, 5120)
V3 = MlaGeometry(128, 128, 64, 128, 512, 1536, 7168)
KIMI_K2 = MlaGeometry(64, 128, 64, 128, 512, 1536, 7168)
MINICPM3 = MlaGeometry(40, 64, 32, 64, 256, 768, 2560)
GLM_47_FLASH = MlaGeometry(20, 192, 64, 256, 512, 768, 2048)
RELEASED = {
    "V2-Lite": V2_LITE,
    "V2": V2,
    "V3": V3,
    "Kimi-K2": KIMI_K2,
    "MiniCPM3": MINICPM3,
    "GLM-4.7-Flash": GLM_47_FLASH,
}

# Wide heads over a narrow latent: the product of the two matrices is smaller than the pair.
SHRINKS = MlaGeometry(16, 256, 32, 256, 64, 256, 512)


@pytest.mark.parametrize(
    ("name", "factored", "fold_q", "fold_o", "fold"),
    [
        ("V2-Lite", 12.6, 24.1, 24.1, 35.7),
        ("V2", 138.4, 205.5, 381.7, 448.8),
        ("V3", 172.0, 239.1, 515.9, 583.0),
        ("Kimi-K2", 86.0, 119.5, 257.9, 291.5),
        ("MiniCPM3", 10.8, 16.1, 29.8, 35.1),
        ("GLM-4.7-Flash", 19.0, 22.0, 26.9, 29.8),
    ],
)
def test_weights_per_layer(
    name: str, factored: float, fold_q: float, fold_o: float, fold: float
) -> None:
    forms = {"factored": factored, "fold-q": fold_q, "fold-o": fold_o, "fold": fold}
    for form, millions in forms.items():
        count = cost_model.weight_count(RELEASED[name], form)  # type: ignore[arg-type]
        assert count / 1e6 == pytest.approx(millions, abs=0.06), form


def test_expanded_forms_hold_the_factored_weights() -> None:
    factored = cost_model.weight_bytes(V3, "factored", 2)
    assert factored == 2 * cost_model.weight_count(V3, "expanded")
    assert factored == 2 * cost_model.weight_count(V3, "expanded-cache")


@pytest.mark.parametrize(
    ("name", "crossover"), [("V3", 171), ("V2-Lite", 171), ("MiniCPM3", 85), ("GLM-4.7-Flash", 398)]
)
def test_prefill_crossover(name: str, crossover: int) -> None:
    choice = cost_model.choose_prefill(RELEASED[name])
    assert choice.form == "auto"
    assert choice.crossover is not None
    assert round(choice.crossover) == crossover
    assert str(crossover) in choice.reason


@pytest.mark.parametrize("name", ["V3", "MiniCPM3", "GLM-4.7-Flash"])
def test_operations_cross_where_the_formula_says(name: str) -> None:
    """Counting stage by stage must change sides within one token of the closed formula."""
    geometry = RELEASED[name]
    total = 10_000_000
    at = geometry.crossover_at(total)

    def excess(query_len: int) -> float:
        work = Workload(1, query_len, total)
        absorbed = cost_model.cost(geometry, "factored", dtype_bytes=4, workload=work)
        expanded = cost_model.cost(geometry, "expanded", dtype_bytes=4, workload=work)
        return absorbed.flops - expanded.flops

    assert excess(int(at) - 1) < 0 < excess(int(at) + 2)


def test_crossover_with_a_known_context_is_lower() -> None:
    limit, short = cost_model.choose_prefill(V3), cost_model.choose_prefill(V3, total_len=512)
    assert short.crossover is not None
    assert limit.crossover is not None
    assert short.crossover == pytest.approx(128, abs=0.1)
    assert short.crossover < limit.crossover


def test_absorbed_is_never_dearer_when_the_latent_is_narrow() -> None:
    choice = cost_model.choose_prefill(SHRINKS)
    assert (choice.form, choice.crossover) == ("absorbed", None)
    assert "128 <= 512" in choice.reason


def test_a_model_that_takes_one_token_has_no_prefill() -> None:
    assert cost_model.choose_prefill(V3, always_short=True).form == "absorbed"


@pytest.mark.parametrize(
    ("heads", "batch", "context", "absorbed", "cached", "reexpanded"),
    [
        (16, 1, 4096, 1.1, 9.8, 22),
        (16, 16, 16384, 70.4, 624, 1395),
        (16, 128, 4096, 141.5, 1249, 2790),
        (128, 1, 4096, 1.4, 78, 174),
        (128, 16, 16384, 92.4, 4994, 11161),
        (128, 128, 4096, 184.8, 9988, 22323),
    ],
)
def test_decode_roofline_of_the_attention_on_h200(
    heads: int, batch: int, context: int, absorbed: float, cached: float, reexpanded: float
) -> None:
    geometry = MlaGeometry(heads, 128, 64, 128, 512)
    h200 = HARDWARE["h200"]
    without_launch = Hardware(h200.name, h200.flops, h200.bandwidth, 0.0)
    expected = {"factored": absorbed, "expanded-cache": cached, "expanded": reexpanded}
    for form, micros in expected.items():
        stage = cost_model.attention_stage(
            geometry,
            form,  # type: ignore[arg-type]
            dtype_bytes=2,
            workload=Workload(batch, 1, context),
        )
        assert stage.seconds(without_launch) * 1e6 == pytest.approx(micros, rel=0.04), form


def test_cache_bytes_per_token() -> None:
    assert cost_model.cache_bytes_per_token(V2_LITE, "expanded", 4) == 20_480
    assert cost_model.cache_bytes_per_token(V3, "expanded", 4) == 163_840
    assert cost_model.cache_bytes_per_token(V3, "latent", 4) == 2_304
    assert cost_model.cache_bytes_per_token(V3, "none", 4) == 0


def test_absorbed_attention_reads_each_latent_row_once() -> None:
    stage = cost_model.attention_stage(V3, "factored", dtype_bytes=2, workload=Workload(2, 1, 1000))
    assert stage.bytes == 2 * (2 * 1000 * 576 + 2 * 128 * 1088)
    assert stage.flops == 2 * 2 * 1000 * 128 * 1088


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("machine", HARDWARE)
def test_no_released_model_is_folded(name: str, machine: str) -> None:
    choice = cost_model.choose_form(RELEASED[name], dtype_bytes=2, hardware=HARDWARE[machine])
    assert choice.form == "factored"
    assert "x the weights" in choice.reason


def test_the_reason_carries_the_figures() -> None:
    choice = cost_model.choose_form(V3, dtype_bytes=2)
    assert choice.reason.startswith(
        "fold-q, the best fold, takes 1.39x the weights (344 -> 478 MB)"
    )
    assert "8192 tokens of context on 2-core AVX-512 CPU" in choice.reason


def test_folding_is_taken_where_it_shrinks() -> None:
    assert cost_model.choose_form(SHRINKS, dtype_bytes=4).form == "fold"


def test_a_gate_before_the_output_forbids_folding_it() -> None:
    choice = cost_model.choose_form(SHRINKS, dtype_bytes=4, can_fold_output=False)
    assert choice.form == "fold-q"


def test_a_fold_that_only_saves_a_launch_is_not_taken() -> None:
    slow_launch = Hardware("launch bound", 1e15, 1e13, 1e-3)
    folded = cost_model.cost(GLM_47_FLASH, "fold", dtype_bytes=2).seconds(slow_launch)
    assert folded < cost_model.cost(GLM_47_FLASH, "factored", dtype_bytes=2).seconds(slow_launch)
    choice = cost_model.choose_form(GLM_47_FLASH, dtype_bytes=2, hardware=slow_launch)
    assert choice.form == "factored"


def test_unknown_hidden_size_forbids_what_needs_it() -> None:
    unknown = MlaGeometry(16, 256, 32, 256, 64, None, None)
    choice = cost_model.choose_form(unknown, dtype_bytes=4)
    assert choice.form == "factored"
    assert "hidden state" in choice.reason
    with_query = MlaGeometry(16, 256, 32, 256, 64, 256, None)
    assert cost_model.choose_form(with_query, dtype_bytes=4).form == "fold-q"


def test_absorbing_wins_decode_on_every_machine() -> None:
    for hardware in HARDWARE.values():
        absorbed, reexpanded, cached = (
            cost_model.cost(V2_LITE, form, dtype_bytes=2).seconds(hardware)
            for form in ("factored", "expanded", "expanded-cache")
        )
        assert absorbed < cached < reexpanded


@pytest.mark.parametrize(("batch", "query_len", "total_len"), [(0, 1, 8), (1, 0, 8), (1, 9, 8)])
def test_impossible_workloads_are_refused(batch: int, query_len: int, total_len: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        Workload(batch, query_len, total_len)


def test_causal_scores_count_the_triangle() -> None:
    assert Workload(2, 4, 4).scores == 2 * (1 + 2 + 3 + 4)
    assert Workload(1, 1, 100).scores == 100


UNFUSED = Prefill(V2_LITE, 4)
FUSED = Prefill(V2_LITE, 4, expands_from=171, fused=True)
HELD = Prefill(V2_LITE, 4, expands_from=171, fused=True, held=True)
GIB = 1 << 30


def test_the_branch_that_a_chunk_takes_is_the_one_of_the_model() -> None:
    """S > s T / (T + s), which tends to s as the context grows."""
    assert not FUSED.expands(170, 100_000)
    assert FUSED.expands(171, 100_000)
    assert FUSED.expands(128, 128)
    assert not Prefill(V2_LITE, 4).expands(10_000, 10_000)


def test_scores_are_what_limits_a_chunk_without_a_kernel() -> None:
    """Three float32 tensors of scores, 16 heads, at 32k keys: 6 MiB for each token; and a mask."""
    at_32k, mask = UNFUSED.bytes(Workload(1, 100, 32_768)), 100 * 32_768 * 20
    assert at_32k == pytest.approx(100 * 3 * 16 * 32_768 * 4 + mask, rel=0.03)
    assert FUSED.bytes(Workload(1, 100, 32_768)) - mask < at_32k / 40


def test_a_mask_is_what_limits_a_chunk_with_a_kernel() -> None:
    """It has no heads, yet a row of it for each token: 32k-token prompts in 1.5 GB need that."""
    absorbed = Prefill(V2_LITE, 4, fused=True)
    chunk = cost_model.choose_chunk(absorbed, 1, 31_000, 5000, GIB // 2)
    assert chunk < cost_model.choose_chunk(absorbed, 1, 31_000, 5000, 2 * GIB)
    assert chunk * (31_000 + chunk) * 20 > absorbed.bytes(Workload(1, chunk, 31_000 + chunk)) / 2


def test_a_kernel_that_expands_keeps_no_scores_and_few_keys() -> None:
    """At most 64 MiB of keys and values, or those of one head: 320 numbers for each token."""
    for batch, total, kept in ((1, 32_768, 1 << 26), (4, 100_000, 100_000 * 320 * 4)):
        workload, masks = Workload(batch, 512, total), batch * 512 * total * 20
        beyond = HELD.bytes(workload) - masks
        assert kept <= beyond <= kept + batch * 512 * 16 * 2 * 1100 * 4
        assert FUSED.bytes(workload) - HELD.bytes(workload) > 3 * 16 * batch * 512 * total * 4


@pytest.mark.parametrize("prefill", [UNFUSED, FUSED, HELD])
@pytest.mark.parametrize("past_len", [0, 1000, 32_000])
@pytest.mark.parametrize("budget", [1 << 20, 1 << 26, GIB])
def test_a_chunk_fits_and_no_better_one_would(prefill: Prefill, past_len: int, budget: int) -> None:
    chunk = cost_model.choose_chunk(prefill, 2, past_len, 5000, budget)

    def workload(size: int) -> Workload:
        return Workload(2, size, past_len + size)

    if chunk > 1:
        assert prefill.bytes(workload(chunk)) <= budget
    seconds = prefill.seconds_per_token(workload(chunk))
    for size in (1, 8, 64, 128, 512, 2048):
        if prefill.bytes(workload(size)) <= budget:
            assert seconds <= 1.06 * prefill.seconds_per_token(workload(size)), size


def test_a_prompt_of_any_length_fits_where_one_token_does() -> None:
    """Whatever the budget: one token at a time is the least there is."""
    assert cost_model.choose_chunk(UNFUSED, 1, 1 << 20, 100, 1) == 1


def test_a_chunk_is_no_longer_than_what_remains() -> None:
    assert cost_model.choose_chunk(FUSED, 1, 0, 3, GIB) <= 3
    assert cost_model.choose_chunk(FUSED, 1, 0, 10**6, 1 << 40) <= cost_model.MAX_CHUNK
