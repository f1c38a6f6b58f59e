from __future__ import annotations

from typing import ClassVar

import pytest

from mla_opt import passes
from mla_opt.errors import InputError
from mla_opt.options import Options


def names(options: Options) -> list[str]:
    return [step.name for step in options.pipeline().passes]


def step(options: Options, name: str):
    return next(each for each in options.pipeline().passes if each.name == name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": "tpu"}, "target is 'tpu', not onnxruntime, portable, onnxruntime-paged or ten"),
        ({"absorb": "both"}, "absorb is 'both', not auto, factored, fold-q, fold-o, fold or none"),
        ({"prefill": "fast"}, "prefill is 'fast', not absorbed, expanded or auto"),
        ({"cache": "dynamic"}, "cache: 'dynamic' is none of keep, packed, static"),
        (
            {"cache": "packed:4"},
            "cache: 'packed:4' is none of keep, packed, static",
        ),
        ({"cache": "static:"}, "cache: the rows in 'static:': '' is no whole number"),
        ({"cache": "static:0"}, "cache: the rows in 'static:0': '0' is too small"),
        ({"cache": "static:-4"}, "cache: the rows in 'static:-4': '-4' is no whole number"),
        ({"cache": "static:many"}, "cache: the rows in 'static:many': 'many' is no whole number"),
        ({"cache": "static", "absorb": "none"}, "cache static needs absorbed attention"),
        (
            {"cache": "static", "prefill": "expanded", "weights": "float"},
            "prefill expanded is for cache static only where the operator holds its weights, which"
            " it does not for target onnxruntime with weights float; use weights keep, cache keep",
        ),
        (
            {"cache": "static", "prefill": "expanded", "target": "portable"},
            "prefill expanded is for cache static only where .* target portable with weights auto",
        ),
        ({"absorb": "fold", "prefill": "expanded"}, "prefill expanded is not for absorb fold"),
        ({"absorb": "none", "prefill": "absorbed"}, "prefill absorbed needs absorbed attention"),
        (
            {"cache_type": "int4"},
            "cache_type is 'int4', not keep, float16, bfloat16, int8 or fp8",
        ),
        ({"cache_type": "int8"}, "cache type int8 needs cache packed or static: scales have no"),
        (
            {"cache_type": "int8", "cache": "even"},
            "cache type int8 needs cache packed or static: scales have no place in two halves",
        ),
        ({"target": "tensorrt", "cache": "even"}, "target tensorrt needs cache static:ROWS"),
        (
            {"cache_type": "fp8", "cache": "packed", "prefill": "expanded", "weights": "float"},
            "prefill expanded is not for cache type fp8, .* use weights keep",
        ),
        ({"cache_type": "float16", "absorb": "none"}, "cache type float16 needs absorbed"),
        ({"weights": "packed"}, "weights is 'packed', not auto, float or keep"),
        ({"weights": "keep", "absorb": "fold"}, "weights keep is not for absorb fold"),
        (
            {"weights": "keep", "target": "portable"},
            "weights keep is for target onnxruntime, not portable",
        ),
        ({"matmul_nbits": "ours"}, "matmul_nbits is 'ours', not keep or kernel"),
        (
            {"matmul_nbits": "kernel", "target": "portable"},
            "matmul_nbits kernel is for target onnxruntime, not portable",
        ),
        ({"phase": "both"}, "phase is 'both', not prefill or decode"),
        ({"target": "tensorrt"}, "target tensorrt needs cache static:ROWS, not keep"),
        ({"target": "tensorrt", "cache": "static"}, "target tensorrt needs cache static:ROWS"),
        (
            {"target": "tensorrt", "cache": "static:8", "cache_type": "float16"},
            "cache type float16 is not for target tensorrt",
        ),
    ],
)
def test_what_is_not_allowed(given, message):
    with pytest.raises(InputError, match=f"^{message}"):
        Options(**given)


def test_a_superscript_is_no_number():
    with pytest.raises(InputError):
        Options(cache="static:²")


@pytest.mark.parametrize(
    ("cache", "mode"),
    [
        ("keep", ("keep", None)),
        ("packed", ("packed", None)),
        ("even", ("even", None)),
        ("static", ("static", None)),
        ("static:4096", ("static", 4096)),
    ],
)
def test_cache_modes(cache, mode):
    assert Options(cache=cache).cache_mode() == mode


def test_the_default_pipeline_in_order():
    left_out = {
        "write_cache_in_place",
        "lower_to_standard_ops",
        "lower_to_tensorrt",
        "narrow_cache",
        "quantize_cache",
        "add_prefill_branch",
        "read_causal_masks",
        "lower_to_paged_attention",
        "replace_matmul_nbits",
    }
    assert names(Options()) == [name for name in passes.BUILT_IN if name not in left_out]


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({"target": "portable"}, {"lower_to_standard_ops", "add_prefill_branch"}),
        ({"cache": "static"}, {"write_cache_in_place"}),
        ({"cache_type": "bfloat16"}, {"narrow_cache"}),
        ({"weights": "float"}, {"add_prefill_branch"}),
        ({"absorb": "fold"}, {"add_prefill_branch"}),
        ({"cache_type": "int8", "cache": "packed"}, {"quantize_cache"}),
        ({"matmul_nbits": "kernel"}, {"replace_matmul_nbits"}),
    ],
)
def test_passes_that_run_only_when_asked_for(given, added):
    assert set(names(Options(**given))) - set(names(Options())) == added
    chosen = names(Options(**given))
    assert chosen == [name for name in passes.BUILT_IN if name in chosen]


@pytest.mark.parametrize(
    ("phase", "own"),
    [
        ("decode", ["write_cache_in_place", "lower_to_tensorrt"]),
        ("prefill", ["lower_to_tensorrt"]),
    ],
)
def test_the_passes_of_an_engine(phase, own):
    options = Options(target="tensorrt", cache="static:8", phase=phase, plugin=False, absorb="fold")
    assert "add_prefill_branch" not in names(options)
    assert [name for name in names(options) if name not in names(Options())] == own
    lowering = step(options, "lower_to_tensorrt")
    assert (lowering.phase, lowering.plugin, lowering.capacity) == (phase, False, 8)
    assert step(options, "choose_form").absorb == ("fold" if phase == "decode" else "factored")


def test_the_passes_of_packed_tokens():
    """The operator has rows in a type of its own: no other pass narrows them."""
    options = Options(target="onnxruntime-paged", cache_type="int8")
    assert set(names(options)) - set(names(Options())) == {
        "read_causal_masks",
        "lower_to_paged_attention",
    }
    assert "hold_weights" not in names(options)
    assert step(options, "compress_cache").mode == "packed"
    assert step(options, "choose_form").prefill == "absorbed"
    assert step(options, "lower_to_paged_attention").cache_type == "int8"
    kinds = [Options(target="onnxruntime-paged", cache_type=kind) for kind in ("int8", "fp8")]
    assert [each.least_opset for each in kinds] == [0, 19]


def test_options_reach_their_passes():
    options = Options(absorb="fold-q", prefill="absorbed", cache="static:64", cache_type="bfloat16")
    form = step(options, "choose_form")
    assert (form.absorb, form.prefill, form.in_place) == ("fold-q", "absorbed", True)
    assert step(options, "compress_cache").mode == "static"
    assert step(options, "write_cache_in_place").capacity == 64
    assert step(options, "narrow_cache").cache_type == "bfloat16"
    assert not step(Options(), "choose_form").in_place
    codes = Options(cache="packed", cache_type="fp8")
    assert step(codes, "quantize_cache").cache_type == "fp8"
    assert step(codes, "choose_form").quantized
    assert [codes.least_opset, Options().least_opset] == [19, 0]


def test_an_operator_that_holds_its_weights_chooses_the_form_itself():
    for weights, absorb in (("keep", "factored"), ("auto", "auto")):
        options = Options(weights=weights, cache="static", prefill="expanded")
        assert "add_prefill_branch" not in names(options)
        form = step(options, "choose_form")
        assert (form.absorb, form.prefill, form.held) == (absorb, "expanded", True)


def test_passes_of_ones_own_choice():
    assert names(Options(passes=("clean_up",))) == ["clean_up"]
    assert names(Options(passes=())) == []


def test_a_pass_that_does_not_exist():
    with pytest.raises(InputError, match="no pass is called 'fuse'; there are drop_no_ops, take"):
        Options(passes=("fuse",)).pipeline()


@pytest.mark.parametrize(
    "order",
    [
        ("absorb_weights", "absorb_weights"),
        ("clean_up", "find_latent_attention"),
        ("find_latent_attention", "add_prefill_branch", "fuse_cache_append"),
    ],
)
def test_passes_that_cannot_run_in_that_order(order):
    with pytest.raises(InputError, match=f"{order[-1]} cannot run after {order[-2]}"):
        Options(passes=order).pipeline()


def test_passes_of_others_may_run_anywhere(monkeypatch):
    class Between(passes.Pass):
        name: ClassVar[str] = "between"

        def run(self, graph):
            raise NotImplementedError

    known = passes.available()
    monkeypatch.setattr(passes, "available", lambda: {**known, "between": lambda: Between})
    order = ("find_latent_attention", "between", "extract_weights", "between")
    assert names(Options(passes=order)) == list(order)


def test_as_dict_is_what_was_given():
    assert Options(cache="packed").as_dict() == {
        "target": "onnxruntime",
        "absorb": "auto",
        "cache": "packed",
        "prefill": "auto",
        "cache_type": "keep",
        "passes": None,
        "phase": "decode",
        "plugin": True,
        "keep_activation_quantization": False,
        "weights": "auto",
        "matmul_nbits": "keep",
    }
