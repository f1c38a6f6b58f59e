"""As much of TensorRT's Python surface as a build and a load use, to see what is made of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mla_opt.engines.tensorrt_library import TensorRT


class Layer(SimpleNamespace):
    name: str
    type: str


class Network:
    def __init__(self, module: FakeModule) -> None:
        self.layers = module.layers
        self.inputs = module.inputs

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]

    def get_input(self, index: int) -> Any:
        return self.inputs[index]


class Parser:
    def __init__(self, module: FakeModule) -> None:
        self.module = module

    def parse_from_file(self, path: str) -> bool:
        self.module.parsed.append(path)
        return not self.module.parse_errors

    @property
    def num_errors(self) -> int:
        return len(self.module.parse_errors)

    def get_error(self, index: int) -> Any:
        node, text = self.module.parse_errors[index]
        return SimpleNamespace(node_name=lambda: node, desc=lambda: text)


class Config(SimpleNamespace):
    def __init__(self, module: FakeModule) -> None:
        super().__init__(features=[], capabilities={}, profiles=[], module=module)

    def set_preview_feature(self, feature: str, on: bool) -> None:
        self.features.append((feature, on))

    def set_compute_capability(self, kind: str, index: int) -> None:
        self.capabilities[index] = kind

    def add_optimization_profile(self, profile: Any) -> None:
        self.profiles.append(profile)

    def create_timing_cache(self, content: bytes) -> Any:
        return None if content == b"damaged" else SimpleNamespace(content=content)

    def set_timing_cache(self, cache: Any, ignore: bool) -> None:
        self.cache = cache

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.cache.content + b"+")


class Builder:
    def __init__(self, module: FakeModule) -> None:
        self.module = module

    def create_network(self, flags: int) -> Network:
        self.module.flags = flags
        return Network(self.module)

    def create_builder_config(self) -> Config:
        self.module.config = Config(self.module)
        return self.module.config

    def create_optimization_profile(self) -> Any:
        shapes: dict[str, Any] = {}
        return SimpleNamespace(
            shapes=shapes, set_shape=lambda name, *of: shapes.__setitem__(name, of)
        )

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        monitor = getattr(config, "progress_monitor", None)
        if monitor is not None:
            monitor.phase_start("Building engine", None, 2)
            monitor.step_complete("Building engine", 0)
            monitor.phase_finish("Building engine")
        for severity, text in self.module.lines:
            self.module.logger.log(severity, text)
        return self.module.content


class FakeModule:
    """The module. Set ``layers``, ``inputs``, ``parse_errors``, ``lines``, ``content``."""

    __version__ = "99.1"
    LayerType = SimpleNamespace(PLUGIN_V3="plugin")
    PreviewFeature = SimpleNamespace(ALIASED_PLUGIN_IO_10_03="aliased")
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    ComputeCapability = SimpleNamespace(__members__={"NONE": "none", "SM89": "sm89", "SM120": "x"})
    IProgressMonitor = type("IProgressMonitor", (), {"__init__": lambda self: None})

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.inputs = [SimpleNamespace(name="x", is_shape_tensor=False)]
        self.parse_errors: list[tuple[str, str]] = []
        self.parsed: list[str] = []
        self.lines: list[tuple[str, str]] = []
        self.content: bytes | None = b"engine"
        self.creators: list[Any] = []
        self.brought: list[Any] = []
        self.loaded: list[str] = []
        self.config: Config | None = None
        self.flags = 0
        self.logger = Log()

    def Builder(self, log: Any) -> Builder:  # noqa: N802
        return Builder(self)

    def OnnxParser(self, network: Network, log: Any) -> Parser:  # noqa: N802
        return Parser(self)

    def get_plugin_registry(self) -> Any:
        return SimpleNamespace(all_creators_recursive=self.creators, load_library=self._load)

    def _load(self, path: str) -> None:
        self.loaded.append(path)
        self.creators.extend(self.brought)


class Log:
    sink: Any = None

    def log(self, severity: str, text: str) -> None:
        if self.sink is not None:
            self.sink(severity, text)


def creator(version: str = "1", namespace: str = "mla_opt") -> Any:
    return SimpleNamespace(
        name="LatentAttention", plugin_namespace=namespace, plugin_version=version
    )


def fake() -> tuple[FakeModule, TensorRT]:
    module = FakeModule()
    return module, TensorRT(module, "tensorrt", module.logger)
