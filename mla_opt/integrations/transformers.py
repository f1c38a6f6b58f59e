"""A backend of transformers' exporters: an export config alone gives an optimized model.

    import mla_opt.integrations.transformers
    from transformers.exporters import AutoExportConfig, AutoHfExporter

    config = AutoExportConfig.from_dict({"export_format": "mla_opt", "dynamic": True})
    exported = AutoHfExporter.from_config(config).export_for_generation(model, inputs, config)

Importing this module registers the format, for exporting and for loading what was saved. Needs
transformers 5.23 or newer, and what its ONNX exporter needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import onnxruntime
from transformers.exporters import OnnxConfig, OnnxExporter, register_backend
from transformers.exporters.runners.runner_onnx import OnnxModelRunner
from transformers.exporters.utils import get_leaf_tensors

from mla_opt.api import optimize
from mla_opt.errors import InputError
from mla_opt.integrations.options import chosen
from mla_opt.integrations.rows_in_place import RowsInPlace
from mla_opt.kernels import kernel_available, kernel_library
from mla_opt.options import Absorb, CacheType, MatmulNbits, Options, Phase, Target, Weights
from mla_opt.report import OptimizationReport
from mla_opt.sites import PrefillForm
from mla_opt.verification.extent import Extent

FORMAT = "mla_opt"


@dataclass
class MlaOptConfig(OnnxConfig):
    """What `OnnxConfig` takes, and the options of `mla_opt.optimize` by their names.

    ``cache`` is ``keep``, or ``static:ROWS``: then the runner keeps the cache in buffers of so many
    rows, which every call writes in place. ``optimize`` remains that of `OnnxConfig`.

    Raises:
        InputError: an option cannot be used, or not by the runner.
    """

    export_format: str = FORMAT
    target: Target = "onnxruntime"
    absorb: Absorb = "auto"
    cache: str = "keep"
    cache_type: CacheType = "keep"
    prefill: PrefillForm = "auto"
    verify: bool | Extent = True
    passes: list[str] | None = None
    phase: Phase = "decode"
    plugin: bool = True
    keep_activation_quantization: bool = False
    weights: Weights = "auto"
    matmul_nbits: MatmulNbits = "keep"
    allow_unmatched: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        given = chosen(self)
        known = {each.name for each in dataclasses.fields(Options)}
        options = Options(**{name: value for name, value in given.items() if name in known})
        mode, rows = options.cache_mode()
        if mode != "keep" and rows is None:
            raise InputError(
                f"cache is {self.cache!r}; for transformers it is 'keep' or 'static:ROWS'"
            )
        if self.target not in ("onnxruntime", "portable"):
            raise InputError(
                f"target is {self.target!r}, which the runner of transformers does not run; use"
                " 'onnxruntime' or 'portable' here, or mla-opt optimize and export for it"
            )
        if options.is_quantized:
            raise InputError(
                f"cache_type is {self.cache_type!r}; transformers has no place for scales, so use"
                " 'keep', 'float16' or 'bfloat16'"
            )


class MlaOptExporter(OnnxExporter):
    """Exports as `OnnxExporter` does, and optimizes each component that has latent attention.

    Attributes:
        reports: what was found, decided and measured, for each component that was exported.
    """

    export_format = FORMAT
    config_class = MlaOptConfig

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[OptimizationReport] = []

    def export_program(
        self, model: Any, sample_inputs: MutableMapping[str, Any], config: MlaOptConfig
    ) -> tuple[Any, Any]:
        """One graph, optimized, and what transformers records of it.

        Raises:
            NothingMatchedError: it has no latent attention, and ``allow_unmatched`` is not set.
            VerificationError: the result computes something else.
        """
        program, metadata = super().export_program(model, sample_inputs, config)
        result = optimize(program, **chosen(config))
        self.reports.append(result.report)
        return result.model, metadata


class MlaOptModelRunner(OnnxModelRunner):
    """Runs a component in ONNX Runtime, with the kernels, and with its cache in place.

    Of a component with static caches the returned cache is a view of the runner's buffers: the
    next call writes behind its rows. So one runner serves one batch of sequences at a time.
    """

    def __init__(self, metadata: Any, session: onnxruntime.InferenceSession) -> None:
        super().__init__(metadata, session)
        self._rows = RowsInPlace.of(session)

    @classmethod
    def from_program(
        cls,
        program: Any,
        metadata: Any,
        device: Any = None,
        providers: list[Any] | None = None,
        session_options: onnxruntime.SessionOptions | None = None,
    ) -> MlaOptModelRunner:
        """Open a component; without ``session_options`` with the CPU kernels, where they are built.

        Session options of one's own say themselves whether they have them
        (`mla_opt.kernel_library`).
        """
        if session_options is None:
            session_options = onnxruntime.SessionOptions()
            if kernel_available():
                session_options.register_custom_ops_library(str(kernel_library()))
        made: MlaOptModelRunner = super().from_program(
            program, metadata, device, providers, session_options
        )
        return made

    def __call__(
        self, share_inputs: bool = True, share_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Return what the model returns; see `transformers.exporters.runners.ModelRunner`.

        Raises:
            ValueError: an input is missing.
            InputError: the cache has more rows than the buffers.
        """
        if self._rows is None:
            return super().__call__(share_inputs, share_outputs, **kwargs)
        return self.unflatten(self._rows.run(get_leaf_tensors(kwargs)))


register_backend(MlaOptExporter, MlaOptModelRunner)
