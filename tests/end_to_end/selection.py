"""The exports that every run of the tests goes through; the whole matrix is left to the sweep.

Chosen so that each exporter, opset, attention implementation and part that sets an attention apart
comes up at least once. Left out are families that differ in what is around their attention, and
hybrids whose linear attention is unrolled, which take up to two minutes (kimi_linear is among the
generated texts).
"""

from __future__ import annotations

from tests.exports.spec import ExportSpec

REPRESENTATIVE = (
    ExportSpec("deepseek_v3"),
    ExportSpec("deepseek_v3", opset=23, attention="eager", cache=False),
    ExportSpec("deepseek_v3", dtype="float16"),
    ExportSpec("deepseek_v3", exporter="torchscript"),
    ExportSpec("deepseek_v3", exporter="hf", opset=20, component="decode"),
    ExportSpec("deepseek_v3", exporter="hf_ort", component="decode"),
    ExportSpec("deepseek_v2", opset=23),
    ExportSpec("deepseek_v32"),
    ExportSpec("glm4_moe_lite", opset=24),
    ExportSpec("minicpm3", opset=20),
    ExportSpec("hy_v4", attention="eager"),
    ExportSpec("mistral_large4"),  # one of its layers has no rotary part
)
#: Early expansion, by transformers 4.57 in a Python of its own (`tests.exports.expanded_cache`).
EXPANDED = (
    ExportSpec("deepseek_v3", exporter="dynamo457"),
    ExportSpec("deepseek_v3", exporter="optimum457"),
)
#: Exported anew in each run of the tests.
FRESH = ExportSpec("deepseek_v3")
#: Those that are kept beside the sources (`tests.exports.kept`).
KEPT = (
    *(spec for spec in REPRESENTATIVE if spec != FRESH),
    *EXPANDED,
    ExportSpec("deepseek_v2_noqlora"),
    ExportSpec("deepseek_v3", opset=23),
)
#: Models without latent attention, and opsets: `tests.exports.controls`.
KEPT_CONTROLS = (
    *(
        (name, 18)
        for name in (
            "genuine_latent_block",
            "linear_attention",
            "llama",
            "multi_query",
            "nonlinear_values",
            "rope_per_head",
            "separate_latents",
            "t5",
            "token_reversal",
        )
    ),
    ("genuine_latent_block", 23),
    ("llama", 23),
)
