"""A pass of Olive (olive-ai): `mla_opt.optimize` as a step of an Olive workflow.

    python -m mla_opt.integrations.olive > packages.json
    olive run --config workflow.json --package-config packages.json

Olive looks passes up in a list that comes with it. The first command prints that list with this
pass added, under the name ``MlaOpt``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from mla_opt.api import optimize
from mla_opt.errors import InputError
from mla_opt.files.model_io import model_files, read_model, write_model, write_text
from mla_opt.integrations.options import OPTIONS, chosen

#: Beside the model, also in the folder that the workflow ends in.
REPORT = "mla_opt.report.json"


class MlaOpt(Pass):
    """Absorbs and fuses every latent attention of an ONNX model, and proves the result.

    Its options are those of `mla_opt.optimize`, by the same names. Errors are those of
    `mla_opt.optimize`; Olive prints them, ends the workflow and writes no model.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {
            name: PassConfigParam(
                type_=option.kind, default_value=option.default, description=option.meaning
            )
            for name, option in OPTIONS.items()
        }

    def _run_for_config(
        self, model: Any, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        if not isinstance(model, ONNXModelHandler):
            raise InputError(
                f"MlaOpt takes ONNX models, not {type(model).__name__}; put it behind the pass that"
                " converts (OnnxConversion, ModelBuilder)"
            )
        source = Path(model.model_path)
        output = Path(resolve_onnx_path(output_model_path, source.name))
        read = read_model(source)
        result = optimize(read, **chosen(config))
        write_model(result.model, output, force=True, inputs=model_files(source, read))
        report = output.with_name(REPORT)
        write_text(report, result.report.to_json(), force=True)
        return ONNXModelHandler(
            model_path=str(output.parent),
            onnx_file_name=output.name,
            inference_settings=model.inference_settings,
            model_attributes=_with_file(model.model_attributes, report),
        )


def _with_file(attributes: dict[str, Any] | None, file: Path) -> dict[str, Any]:
    """Attributes of a model with one more file that goes where the model goes.

    Olive itself brings the files that the model had before.
    """
    return {**(attributes or {}), "additional_files": [str(file)]}


def package_config() -> dict[str, Any]:
    """Olive's own list of passes with this one in it: `package_config` of ``olive.run``."""
    listed: dict[str, Any] = json.loads(
        Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8")
    )
    everything = ["*"]
    listed["passes"]["MlaOpt"] = {
        "module_path": f"{MODULE}.{MlaOpt.__name__}",
        "supported_providers": everything,
        "supported_accelerators": everything,
        "supported_precisions": everything,
    }
    return listed


#: As others import it, also where it runs as a program.
MODULE = "mla_opt.integrations.olive"

if __name__ == "__main__":
    print(json.dumps(package_config(), indent=2))
