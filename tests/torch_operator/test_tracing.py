"""The operator inside torch.compile, torch.export and AOTInductor, with sizes that change."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from mla_opt.operator import Signature
from mla_opt.operator.multi_head import MultiHeadSignature
from tests.operator.cases import BATCH, RANK, ROPE, operands
from tests.operator.multi_head_cases import SMALL, SMALL_STORAGES, weights
from tests.torch_operator import multi_head_calls
from tests.torch_operator.calls import IN_PLACE, OPERATOR, attributes, positional, tensor

ROOT = Path(__file__).parent.parent.parent
WIDTH = RANK + ROPE
GROWING = Signature(has_cache=True, split=True, bias="additive", causal=True)
STATIC = Signature(has_cache=True, in_place=True, sink=True, causal=True)

AUTO = torch.export.Dim.AUTO
GROWING_SHAPES = ({2: AUTO}, {2: AUTO}, {2: AUTO}, {2: AUTO}, {2: AUTO, 3: AUTO})
STATIC_SHAPES = ({2: AUTO}, {2: AUTO}, {2: AUTO}, {}, {})


class Growing(torch.nn.Module):
    """An attention between two linear layers, as a model has it; returns the new caches."""

    def __init__(self):
        super().__init__()
        self.q_proj = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, query, latent, cache, rope_cache, bias):
        output, *caches = OPERATOR(
            self.q_proj(query),
            latent,
            cache,
            bias=bias * 2.0,
            rope_cache=rope_cache,
            **attributes(GROWING),
        )
        return output * 3.0, *caches


class Static(torch.nn.Module):
    def forward(self, query, latent, cache, past_len, sink):
        query = query + 1.0
        return IN_PLACE(query, latent, cache, past_len, None, sink, **attributes(STATIC)) * 2.0


class Holding(torch.nn.Module):
    """Both forms of the operator that holds its weights, which are the module's own."""

    def __init__(self):
        super().__init__()
        kv_b = tensor(weights(*SMALL_STORAGES["float32"], SMALL)["kv_b"])
        self.kv_b = torch.nn.Parameter(kv_b)

    def forward(self, growing, static):
        query, latent, cache, rope_cache, bias = growing
        narrow = query[..., : SMALL.qk_head_dim]
        made, *caches = multi_head_calls.OPERATOR(
            narrow,
            self.kv_b,
            latent,
            cache,
            bias=bias,
            rope_cache=rope_cache,
            **multi_head_calls.attributes(MultiHeadSignature(GROWING)),
        )
        query, latent, cache, past_len, sink = static
        written = multi_head_calls.IN_PLACE(
            query[..., : SMALL.qk_head_dim] + 1.0,
            self.kv_b,
            latent,
            cache,
            past_len,
            None,
            sink,
            **multi_head_calls.attributes(MultiHeadSignature(STATIC)),
        )
        return made * 2.0, *caches, written * 2.0


class Both(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.growing, self.static, self.holding = Growing(), Static(), Holding()
        self.eval().requires_grad_(False)

    def forward(self, growing, static):
        return self.static(*static), *self.growing(*growing), *self.holding(growing, static)


def growing(query_len, past):
    feeds = operands(GROWING, query_len=query_len, past=past)
    return tuple(
        torch.from_numpy(feeds[key]) for key in ("query", "latent", "cache", "rope_cache", "bias")
    )


def static(query_len, past):
    given = positional(operands(STATIC, query_len=query_len, past=past))
    return tuple(value for value in given if value is not None)


def assert_same(actual, wanted):
    for one, other in zip(actual, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Growing().eval().requires_grad_(False)


@pytest.fixture
def program(model):
    return torch.export.export(model, growing(5, 7), dynamic_shapes=GROWING_SHAPES)


def test_compiled_as_the_cache_grows(model):
    """One graph for the first size, one for all others; no break in it."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    query_lens = (5, 1, 1, 1, 1, 1)
    for step, query_len in enumerate(query_lens):
        given = growing(query_len, 5 + step)
        assert_same(compiled(*given), model(*given))
    assert counter.frame_count <= 3


def test_compiled_in_place():
    compiled = torch.compile(Static(), fullgraph=True)
    for past in (6, 8):
        given, other = static(1, past), static(1, past)
        torch.testing.assert_close(compiled(*given), Static()(*other))
        torch.testing.assert_close(given[2], other[2])


def test_exported_with_any_sizes(program, model):
    calls = [node for node in program.graph.nodes if node.target is OPERATOR.default]
    assert len(calls) == 1
    assert calls[0].kwargs == attributes(GROWING)
    for query_len, past in ((1, 7), (5, 0), (3, 40)):
        given = growing(query_len, past)
        assert_same(program.module()(*given), model(*given))


def test_decompositions_leave_it_whole(program, model):
    decomposed = program.run_decompositions()
    assert [n.target for n in decomposed.graph.nodes].count(OPERATOR.default) == 1
    given = growing(2, 3)
    assert_same(decomposed.module()(*given), model(*given))


def test_a_bad_bias_is_noticed_while_exporting(model):
    given = growing(5, 7)
    bias = torch.zeros(BATCH, 1, 5, 9)
    with pytest.raises(Exception, match=r"bias has size 9 on axis 3 .* broadcast to 12"):
        torch.export.export(model, (*given[:4], bias))


def test_saved_and_loaded_elsewhere(program, model, tmp_path):
    torch.export.save(program, tmp_path / "program.pt2")
    given = growing(2, 4)
    torch.save({"given": given, "wanted": model(*given)}, tmp_path / "case.pt")
    code = (
        "import sys, torch, mla_opt.operator.torch.op; folder = sys.argv[1]; "
        "case = torch.load(folder + '/case.pt'); "
        "got = torch.export.load(folder + '/program.pt2').module()(*case['given']); "
        "[torch.testing.assert_close(a, b) for a, b in zip(got, case['wanted'], strict=True)]"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_packaged_by_aotinductor(tmp_path):
    """Both forms in one package: new tensors, and a buffer that the program changes."""
    given = (growing(5, 7), static(5, 6))
    shapes = (GROWING_SHAPES, STATIC_SHAPES)
    program = torch.export.export(Both(), given, dynamic_shapes=shapes)
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "model.pt2")
    )
    for run in (program.module(), torch._inductor.aoti_load_package(path)):
        for query_len, past in ((1, 9), (4, 2)):
            given, others = ((growing(query_len, past), static(query_len, past)) for _ in range(2))
            assert_same(run(*given), Both()(*others))
            torch.testing.assert_close(given[1][2], others[1][2])


@pytest.mark.parametrize("functional", [False, True])
def test_a_program_that_writes_its_buffer_is_saved_and_loaded(functional, tmp_path):
    program = torch.export.export(Static(), static(5, 6), dynamic_shapes=STATIC_SHAPES)
    if functional:
        program = program.run_decompositions({})
    torch.export.save(program, tmp_path / "program.pt2")
    given, other = static(1, 9), static(1, 9)
    loaded = torch.export.load(tmp_path / "program.pt2").module()
    torch.testing.assert_close(loaded(*given), Static()(*other))
    torch.testing.assert_close(given[2], other[2])
