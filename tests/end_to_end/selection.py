"""The exports that every run of the tests goes through; the whole matrix is left to the sweep.

Chosen so that each exporter, opset, attention implementation and part that sets a family apart
comes up at least once; `HEAVY` is left to the sweep.
"""

from __future__ import annotations

from tests.exports.spec import ExportSpec

REPRESENTATIVE = (
    ExportSpec("deepseek_v3"),
    ExportSpec("deepseek_v3", opset=23, attention="eager", cache=False),
    ExportSpec("deepseek_v3", dtype="float16"),
    ExportSpec("deepseek_v3", exporter="torchscript"),
    ExportSpec("deepseek_v3", exporter="hf", opset=20, component="prefill"),
    ExportSpec("deepseek_v3", exporter="hf", opset=20, component="decode"),
    ExportSpec("deepseek_v3", exporter="hf_ort", component="decode"),
    ExportSpec("deepseek_v3_halves", opset=23),
    ExportSpec("deepseek_v2", opset=23),
    ExportSpec("deepseek_v32"),
    ExportSpec("glm4_moe_lite", opset=24),
    ExportSpec("glm_moe_dsa", attention="eager"),
    ExportSpec("longcat_flash"),
    ExportSpec("minicpm3", opset=20),
    ExportSpec("mistral4", opset=24, cache=False),
    ExportSpec("mistral_large4"),
    ExportSpec("axk2"),
    ExportSpec("dots3_note", attention="eager"),
    ExportSpec("hy_v4", attention="eager"),
)
#: Half a minute to two minutes each, and alike to others: hybrids, whose linear attention is
#: unrolled (kimi_linear is among the programs and the generated texts, too), and families that
#: differ from those above in what is around their attention.
HEAVY = (
    ExportSpec("bailing_hybrid", cache=False),
    ExportSpec("glm5_next", cache=False),
    ExportSpec("kimi_linear", cache=False),
    ExportSpec("mistral_large4_shared", attention="eager"),
    ExportSpec("dots3_note_sliding", cache=False),
    ExportSpec("youtu", opset=23, attention="eager"),
    ExportSpec("axk1", cache=False),
)
#: Early expansion: these need a Python with transformers 4.57 (`tests.exports.expanded_cache`).
EXPANDED = (
    ExportSpec("deepseek_v3", exporter="dynamo457"),
    ExportSpec("deepseek_v2", exporter="dynamo457", opset=23),
    ExportSpec("deepseek_v3", exporter="optimum457"),
)
