"""What each exporter calls the tensors of `flat`.

flat               past.0.keys                            present.0.keys
transformers       input.past_key_values.layers.0.keys    output.past_key_values.layers.0.keys
  its prefill      -                                      past_key_values.layers.0.keys
optimum            past_key_values.0.key                  present.0.key
"""

from __future__ import annotations

from tests.exports.spec import ExportSpec


def exported_name(spec: ExportSpec, name: str) -> str:
    """The name in the exported graph of a tensor that `flat` calls `name`."""
    side, _, rest = name.partition(".")
    if side not in ("past", "present"):
        return name
    if spec.exporter in ("hf", "hf_ort"):
        return f"{_hf_prefix(spec, side)}past_key_values.layers.{rest}"
    if spec.exporter == "optimum457":
        return ("past_key_values." if side == "past" else "present.") + rest.removesuffix("s")
    return name


def _hf_prefix(spec: ExportSpec, side: str) -> str:
    if spec.component == "prefill":
        return ""
    return "input." if side == "past" else "output."


def has_input(spec: ExportSpec, name: str) -> bool:
    """Whether the exported graph has the input that `flat` calls `name`."""
    if spec.exporter in ("hf", "hf_ort"):
        return name != "attention_mask" and (
            spec.component == "decode" or not name.startswith("past.")
        )
    return True
