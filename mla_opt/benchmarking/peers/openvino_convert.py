"""Convert a transformers folder to OpenVINO with transformers' own exporter, its cache as state.

python -m mla_opt.benchmarking.peers.openvino_convert DIR TARGET.xml
"""

from __future__ import annotations

import sys
from typing import Any

import openvino
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.exporters import exporter_openvino

BATCH, NEW, PAST = 2, 3, 5


def convert(folder: str, target: str) -> None:
    """Trace one chunk on a past and save the model."""
    loader: Any = AutoModelForCausalLM
    model = loader.from_pretrained(folder, dtype=torch.float32).eval()
    cache = DynamicCache()
    with torch.no_grad():
        model(torch.full((BATCH, PAST), 3), past_key_values=cache, use_cache=True)
    inputs = {
        "input_ids": torch.full((BATCH, NEW), 3),
        "attention_mask": torch.ones(BATCH, PAST + NEW, dtype=torch.long),
        "position_ids": torch.arange(PAST, PAST + NEW).expand(BATCH, NEW).contiguous(),
        "past_key_values": cache,
        "use_cache": True,
    }
    exporter: Any = exporter_openvino
    config = exporter.OpenVINOConfig(dynamic=True)
    exported = exporter.OpenVINOExporter().export(model, inputs, config=config)
    openvino.save_model(exported.program, target, compress_to_fp16=False)


if __name__ == "__main__":
    convert(sys.argv[1], sys.argv[2])
