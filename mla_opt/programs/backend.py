"""``torch.compile(model, backend="mla_opt")``: rewrite what Dynamo hands over, then Inductor.

    model.eval()
    compiled = torch.compile(model, backend="mla_opt")
    with torch.inference_mode():
        compiled(input_ids, past_key_values=cache)

PyTorch finds the backend by the package's entry point; nothing has to be imported. Parameters are
taken for constants, as when a model is frozen: compile again after they have changed.

Whatever cannot be rewritten goes to Inductor as it is: a graph without a latent attention, one that
records gradients, one that cannot be read or whose caches would change their shapes, and one that
fails on the way. The log of ``mla_opt`` says which and why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import fx
from torch._dynamo.exc import RestartAnalysis, SkipFrame

from mla_opt.errors import MlaOptError
from mla_opt.graphs.protocol import Graph
from mla_opt.graphs.torch.graph import TorchGraph
from mla_opt.graphs.torch.lifted_program import LiftedProgram, shape_of
from mla_opt.options import Options
from mla_opt.programs import from_module, to_module
from mla_opt.programs.dynamo import own_tensors
from mla_opt.programs.program_options import program_options
from mla_opt.programs.recompose import recompose

logger = logging.getLogger("mla_opt")

Compiled = Callable[..., Any]

_DYNAMOS_OWN = (RestartAnalysis, SkipFrame)
"""What Inductor raises to have Dynamo trace the function anew, or not at all: no failures."""


# No @register_backend: the entry point registers it, and one name is registered once.
def compile_graph(
    module: fx.GraphModule, example_inputs: Sequence[Any], *, options: dict[str, Any] | None = None
) -> Compiled:
    """Compile one graph of Dynamo's.

    Args:
        module: the graph.
        example_inputs: a value for each of its placeholders, parameters included.
        options: those of `mla_opt.optimize` that say what to make: ``absorb``, ``cache``,
            ``prefill`` and ``target``.

    Raises:
        InputError: an option has no such value, or is not for programs.
    """
    from torch._inductor.compile_fx import compile_fx

    wanted = program_options(Options(**(options or {})))
    try:
        rewritten = _rewritten(module, example_inputs, wanted)
        if rewritten is not None:
            return cast(Compiled, compile_fx(rewritten, list(example_inputs)))
    except _DYNAMOS_OWN:
        raise
    except Exception as error:  # a model that runs without this backend runs with it
        _tell(error)
    return cast(Compiled, compile_fx(module, list(example_inputs)))


def _tell(error: Exception) -> None:
    """Log why a graph stays as it is; at the level DEBUG, where it went wrong as well."""
    reason = str(error) if isinstance(error, MlaOptError) else f"{type(error).__name__}: {error}"
    reason = " ".join(reason.split())[:600]
    logger.warning("the graph is compiled as it is: %s", reason)
    logger.debug("what went wrong", exc_info=error)


def _rewritten(
    module: fx.GraphModule, example_inputs: Sequence[Any], options: Options
) -> fx.GraphModule | None:
    """The graph with its latent attentions absorbed and fused; None if it is to stay as it is."""
    parameters = own_tensors(module, example_inputs)
    if torch.is_grad_enabled() and any(each.requires_grad for each in parameters.values()):
        logger.warning(
            "the graph records gradients, so it is compiled as it is; call the model under"
            " torch.inference_mode() or torch.no_grad()"
        )
        return None
    source = from_module.lifted(module, parameters)
    source.program.specialize = True
    recompose(source.program)
    before = _interface(source.program)
    graph = TorchGraph(source.program)
    options.pipeline().run(cast(Graph, graph))
    if changed := _changed(before, _interface(source.program)):
        logger.warning(
            "the graph is compiled as it is: its caches would change their shapes (%s), which"
            " those who call a compiled model cannot follow; export the model and use"
            " mla_opt.optimize",
            ", ".join(changed),
        )
        return None
    logger.info("%d latent attentions absorbed and fused", len(graph.sites))
    return to_module.graph_module(source) if graph.sites else None


def _interface(program: LiftedProgram) -> dict[str, Any]:
    """What the program takes and returns, by name or place."""
    given = {node.name: node.meta["val"] for node in program.inputs}
    returned = (
        value.meta["val"] if isinstance(value, fx.Node) else None for value in program.returned
    )
    return given | {f"output {place}": value for place, value in enumerate(returned)}


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of what came, went or has another shape or type; unread inputs are given still."""
    added = [name for name in after if name not in before]
    gone = [name for name in before if name.startswith("output ") and name not in after]
    both = [name for name in before if name in after]
    return added + gone + [name for name in both if _form(before[name]) != _form(after[name])]


def _form(value: Any) -> Any:
    return shape_of(value), getattr(value, "dtype", None)
