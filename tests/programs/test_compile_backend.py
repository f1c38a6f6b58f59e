"""The backend as users meet it: by name, on caches as they come, and when something goes wrong.

Inductor is stood in for where only what it is given matters: compiling takes it ten seconds.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import mla_opt
from mla_opt.errors import InputError
from mla_opt.programs import backend, to_module
from tests.exports.controls import GENUINE
from tests.exports.families import FAMILIES
from tests.programs import exporting
from tests.programs.exporting import error

ROOT = Path(mla_opt.__file__).parent.parent
SMALL = {"num_hidden_layers": 1}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The modules that Inductor was given; they run as they are."""
    modules: list[torch.fx.GraphModule] = []

    def stand_in(module: torch.fx.GraphModule, inputs: Any) -> Any:
        modules.append(module)
        return module.forward

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", stand_in)
    return modules


def rewritten(module: torch.fx.GraphModule) -> bool:
    """Whether it holds absorbed weights."""
    return any(".mla." in str(node.target) for node in module.graph.find_nodes(op="get_attr"))


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says; PyTorch's own traces are in it, too."""
    return [each.getMessage() for each in caplog.records if each.name == "mla_opt"]


IN_A_FRESH_PROCESS = """
import torch
{first}
from torch._dynamo.backends.registry import lookup_backend
found = lookup_backend("mla_opt")
assert "mla_opt" in torch._dynamo.list_backends()
import mla_opt.programs.backend
assert found is mla_opt.programs.backend.compile_graph
"""


@pytest.mark.parametrize(
    "first", ["", "import mla_opt.programs.backend"], ids=["by its name alone", "imported before"]
)
def test_the_backend_is_found_in_a_fresh_process(first: str) -> None:
    """PyTorch has it of the entry point, and importing the module registers nothing again."""
    code = IN_A_FRESH_PROCESS.format(first=first)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_an_empty_cache_object_is_rewritten(
    given: list[torch.fx.GraphModule], caplog: pytest.LogCaptureFixture
) -> None:
    """Its first rows are joined to tensors that the model itself makes: constants of the trace."""
    from transformers import DynamicCache

    model = FAMILIES["deepseek_v3"].build("sdpa", **SMALL)
    compiled, ids = torch.compile(model, backend="mla_opt"), torch.arange(8).reshape(2, 4)

    def logits(call: Any) -> list[torch.Tensor]:
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            return [
                call(input_ids=part, past_key_values=cache).logits.clone()
                for part in (ids, ids[:, :1])
            ]

    assert error(logits(compiled), logits(model)) < 5e-5
    assert given
    assert all(map(rewritten, given))
    assert not told(caplog)


@pytest.mark.parametrize("cache", [None, "static"])
def test_generate(cache: str | None, given: list[torch.fx.GraphModule]) -> None:
    model = FAMILIES["deepseek_v3"].build("sdpa", **SMALL)
    asked = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    asked |= {"cache_implementation": cache} if cache else {}
    ids = torch.arange(8).reshape(2, 4)
    expected = model.generate(ids, **asked)
    model.compile(backend="mla_opt")
    assert torch.equal(model.generate(ids, **asked), expected)
    assert any(map(rewritten, given))


def breaks(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Let ``where`` raise what nobody expects."""

    def broken(*_: Any, **__: Any) -> Any:
        raise KeyError("what nobody expects")

    monkeypatch.setattr(f"mla_opt.{where}", broken)


BROKEN = (
    "programs.backend.own_tensors",
    "programs.from_module.lifted",
    "programs.backend.recompose",
    "passes.absorb_weights.AbsorbWeights.run",
    "programs.to_module.graph_module",
)


@pytest.mark.parametrize("where", BROKEN)
def test_whatever_goes_wrong_the_graph_is_compiled_as_it_is(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    breaks(monkeypatch, where)
    check_untouched(monkeypatch)
    (warning,) = told(caplog)
    assert "the graph is compiled as it is: " in warning
    assert "what nobody expects" in warning


def check_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is compiled as Dynamo read it, nodes and notes, and runs."""
    block, read, compiled = GENUINE.build().eval(), [], []

    def noting(module: torch.fx.GraphModule, inputs: Any) -> Any:
        read.append((module, described(module)))
        return backend.compile_graph(module, inputs)

    def stand_in(module: torch.fx.GraphModule, inputs: Any) -> Any:
        compiled.append((module, described(module)))
        return module.forward

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", stand_in)
    example = block.example(2, 7)
    with torch.no_grad():
        call = torch.compile(block, backend=noting)
        assert error([call(*example)], [block(*example)]) < 5e-5
    assert len(read) == 1
    assert compiled == read


def described(module: torch.fx.GraphModule) -> list[str]:
    return [
        f"{node.format_node()} {sorted(node.meta)} {node.meta.get('example_value')}"
        for node in module.graph.nodes
    ]


def test_what_inductor_refuses_is_compiled_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refusing(module: torch.fx.GraphModule, inputs: Any) -> Any:
        if rewritten(module):
            raise RuntimeError("cannot be lowered")
        return module.forward

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", refusing)
    block = GENUINE.build().eval()
    example = block.example(2, 7)
    with torch.no_grad():
        compiled = torch.compile(block, backend="mla_opt")
        assert error([compiled(*example)], [block(*example)]) < 5e-5
    assert "the graph is compiled as it is: RuntimeError: cannot be lowered" in told(caplog)


def test_dynamos_own_exceptions_pass(given: list[torch.fx.GraphModule], monkeypatch: Any) -> None:
    """Dynamo traces anew when it sees one: it is no failure of the rewriting."""

    def restart(source: Any) -> Any:
        raise torch._dynamo.exc.TensorifyScalarRestartAnalysis

    monkeypatch.setattr(to_module, "graph_module", restart)
    block, graphs = GENUINE.build().eval(), []
    torch.compile(block, backend=lambda module, inputs: graphs.append((module, inputs)) or module)(
        *block.example(2, 7)
    )
    ((module, inputs),) = graphs
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.RestartAnalysis):
        backend.compile_graph(module, inputs)


def test_caches_of_another_shape_stay(
    given: list[torch.fx.GraphModule], caplog: pytest.LogCaptureFixture
) -> None:
    """The caller of a compiled model hands it the caches that it has always had."""
    flat = exporting.model("deepseek_v3")
    compiled = torch.compile(flat, backend="mla_opt", options={"cache": "packed"})
    assert exporting.worst_error(flat, compiled, ((1, 2, 7),)) < 5e-5
    assert not any(map(rewritten, given))
    assert "its caches would change their shapes" in caplog.text


def test_an_option_that_is_none_is_an_error() -> None:
    with pytest.raises(InputError, match="cache: 'pakced' is none of keep, packed"):
        backend.compile_graph(None, [], options={"cache": "pakced"})  # type: ignore[arg-type]


def test_the_traceback_is_in_the_log_of_those_who_ask(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="mla_opt")
    breaks(monkeypatch, BROKEN[1])
    check_untouched(monkeypatch)
    assert "Traceback" in caplog.text
