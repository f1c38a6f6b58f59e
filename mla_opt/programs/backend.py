"""``torch.compile(model, backend="mla_opt")``: rewrite what Dynamo hands over, then Inductor.

    model.eval()
    compiled = torch.compile(model, backend="mla_opt")
    with torch.inference_mode():
        compiled(input_ids, past_key_values=cache)

Parameters are taken for constants, as when a model is frozen: compile again after they have
changed. A graph without a latent attention, one that records gradients, and one that cannot be
read go to Inductor as they are; the log of ``mla_opt`` says which and why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import fx
from torch._dynamo import register_backend

from mla_opt.errors import MlaOptError
from mla_opt.graphs.protocol import Graph
from mla_opt.graphs.torch.graph import TorchGraph
from mla_opt.options import Options
from mla_opt.programs import from_module, to_module
from mla_opt.programs.dynamo import own_tensors
from mla_opt.programs.recompose import recompose

logger = logging.getLogger("mla_opt")

Compiled = Callable[..., Any]


@register_backend(name="mla_opt")
def compile_graph(
    module: fx.GraphModule, example_inputs: Sequence[Any], *, options: dict[str, Any] | None = None
) -> Compiled:
    """Compile one graph of Dynamo's.

    Args:
        module: the graph.
        example_inputs: a value for each of its placeholders, parameters included.
        options: those of `mla_opt.optimize` that say what to make: ``absorb``, ``cache``,
            ``prefill`` and ``target``.
    """
    from torch._inductor.compile_fx import compile_fx

    rewritten = _rewritten(module, example_inputs, Options(**(options or {})))
    return cast(Compiled, compile_fx(rewritten or module, list(example_inputs)))


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
    try:
        source = from_module.lifted(module, parameters)
        source.program.specialize = True
        recompose(source.program)
        graph = TorchGraph(source.program)
        options.pipeline().run(cast(Graph, graph))
    except MlaOptError as error:
        logger.warning("the graph is compiled as it is: %s", error)
        return None
    logger.info("%d latent attentions absorbed and fused", len(graph.sites))
    return to_module.graph_module(source) if graph.sites else None
