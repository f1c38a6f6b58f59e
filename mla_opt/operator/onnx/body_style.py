"""What a function body may use, by the runtimes that it is for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BodyStyle:
    """How a body is written where there is a choice; the defaults are right everywhere.

    Attributes:
        adaptive: an If on the number of query rows, which saves ONNX Runtime's CPU a sixth of the
            time where there are few; other runtimes are better served by a straight line.
        tensor_scatter: TensorScatter writes buffers, where the opset has it. OpenVINO does not know
            it, and runs the ScatterND that is written otherwise.
        query_blocks: the expanded form by blocks of queries, so that there are never the scores of
            all; runtimes that fuse attentions themselves do better without.
    """

    adaptive: bool = False
    tensor_scatter: bool = False
    query_blocks: bool = False


#: Those of the targets.
ONNX_RUNTIME = BodyStyle(adaptive=True, tensor_scatter=True, query_blocks=True)
TENSORRT = BodyStyle(tensor_scatter=True)
PORTABLE = BodyStyle(adaptive=True)
