"""``mla_opt::PrefillCrossover``: where a prompt is better expanded, on the machine that runs it.

No inputs; one output, int64 ``[1]``: s, where a prompt of S new tokens on T rows in all takes less
time expanded if ``S > s T / (T + s)``.

| attribute | type | |
|---|---|---|
| ``counted`` | ints, one | s where all products are equally fast: what the function body returns |
| ``kv_lora_rank``, ``qk_nope_head_dim``, ``qk_rope_head_dim``, ``v_head_dim`` | int | C, N, R, V |
| ``rows_type`` | int | ONNX's number of the element type of the latent rows |

With the kernel library, absorbed attention runs at another rate than the matrix products of the
runtime. If it is ``a`` times as fast,

    s = C (N + V) / ((2 C + R) / a - (N + R + V)),

and without bound where that is not positive; a whole prompt, S = T, is expanded whatever s is. The
library knows ``a`` by the instructions it uses.
"""

from __future__ import annotations

import onnx_ir as ir

from mla_opt.geometry import MlaGeometry
from mla_opt.operator.contract import DOMAIN, VERSION

CROSSOVER_OP_TYPE = "PrefillCrossover"
ATTRIBUTES = (
    "counted",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "rows_type",
)


def crossover_attributes(
    geometry: MlaGeometry, counted: int, rows_type: ir.DataType
) -> dict[str, int | list[int]]:
    """Return every attribute of a node."""
    return {
        "counted": [counted],
        "kv_lora_rank": geometry.kv_lora_rank,
        "qk_nope_head_dim": geometry.qk_nope_head_dim,
        "qk_rope_head_dim": geometry.qk_rope_head_dim,
        "v_head_dim": geometry.v_head_dim,
        "rows_type": int(rows_type),
    }


def define_crossover(model: ir.Model) -> None:
    """Give ``model`` the function body, unless it has it."""
    model.opset_imports.setdefault(DOMAIN, VERSION)
    body = _body(model.opset_imports[""])
    model.functions.setdefault(body.identifier(), body)


def _body(opset_version: int) -> ir.Function:
    counted = ir.RefAttr("value_ints", "counted", ir.AttributeType.INTS)
    limit = ir.Value(name="limit")
    node = ir.Node("", "Constant", [], [counted], outputs=[limit])
    graph = ir.Graph([], [limit], nodes=[node], opset_imports={"": opset_version})
    declared = [ir.Attr(name, ir.AttributeType.UNDEFINED, None) for name in ATTRIBUTES]
    return ir.Function(DOMAIN, CROSSOVER_OP_TYPE, "", graph=graph, attributes=declared)
