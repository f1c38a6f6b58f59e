"""What a build asks of TensorRT, and what it makes of the answers."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from mla_opt.engines import cuda_driver, rtx_library, tensorrt_library
from mla_opt.engines.build import Plan, build, check_capabilities, load_plugin
from mla_opt.engines.tensorrt_library import TensorRT, check_plugins
from mla_opt.errors import InputError
from tests.engines.fake_tensorrt import Layer, creator, fake

SHAPES = {"x": ((1, 1), (1, 2), (2, 4))}


def plan(**changes) -> Plan:
    return Plan(Path("m.onnx"), SHAPES, **changes)


def test_networks_are_strongly_typed_and_layers_are_listed():
    module, trt = fake()
    assert build(trt, plan()).content == b"engine"
    assert module.flags == 2
    assert module.config.profiling_verbosity == "detailed"
    assert module.config.profiles[0].shapes == SHAPES
    assert module.config.features == []
    assert not hasattr(module.config, "plugins_to_serialize")


def test_the_plugin_is_loaded_found_and_carried():
    module, trt = fake()
    module.layers = [Layer(name="op", type="plugin")]
    module.brought = [creator()]
    build(trt, plan(operators=["op"], plugin=Path("p.so"), embed=True))
    assert module.loaded == ["p.so"]
    assert module.config.features == [("aliased", True)]
    assert module.config.plugins_to_serialize == ["p.so"]
    build(trt, plan(operators=["op"], plugin=Path("p.so")))
    assert module.loaded == ["p.so"], "once is enough"


def test_a_body_in_the_place_of_the_plugin_is_an_error():
    module, trt = fake()
    module.layers = [Layer(name="one", type="plugin"), Layer(name="two", type="shuffle")]
    module.creators = [creator()]
    with pytest.raises(InputError, match="in the place of 1 of 2 operators, the first 'two'"):
        build(trt, plan(operators=["one", "two"], plugin=Path("p.so")))


@pytest.mark.parametrize(
    ("brought", "message"),
    [
        ([], "p.so: has no such plugin; the model needs mla_opt::LatentAttention version 1"),
        ([creator("2"), creator("3")], "p.so: has version 2, 3; the model needs"),
        ([creator("1", "others")], "has no such plugin"),
    ],
)
def test_a_plugin_of_another_version(brought, message):
    module, trt = fake()
    module.brought = brought
    with pytest.raises(InputError, match=message):
        load_plugin(trt, Path("p.so"))


def test_what_cannot_be_parsed():
    module, trt = fake()
    module.parse_errors = [("node_7", "INVALID_NODE: no\n such thing"), ("node_8", "either")]
    with pytest.raises(InputError, match="does not parse it: node_7: INVALID_NODE: no such thing"):
        build(trt, plan())


def test_what_cannot_be_built_says_why():
    module, trt = fake()
    module.content = None
    module.lines = [("warning", "beware"), ("error", "could not find any supported formats")]
    with pytest.raises(InputError, match="cannot build it: could not find any supported formats"):
        build(trt, plan())
    assert module.logger.sink is None


def test_inputs_that_decide_shapes():
    module, trt = fake()
    module.inputs[0].is_shape_tensor = True
    with pytest.raises(InputError, match="data of input 'x' decide the shape of something"):
        build(trt, plan())


def test_inputs_of_no_known_shape():
    module, trt = fake()
    module.inputs.append(SimpleNamespace(name="y", is_shape_tensor=False))
    with pytest.raises(InputError, match="nothing says what shapes input 'y' has"):
        build(trt, plan())


def test_progress():
    _, trt = fake()
    told = []
    build(trt, plan(), lambda *what: told.append(what))
    assert told == [("Building engine", 0, 2), ("Building engine", 1, 2)]


def test_a_timing_cache_grows(tmp_path):
    _, trt = fake()
    cache = tmp_path / "timing"
    for expected in (b"+", b"++"):
        build(trt, plan(timing_cache=cache))
        assert cache.read_bytes() == expected


def test_a_damaged_timing_cache(tmp_path):
    _, trt = fake()
    cache = tmp_path / "timing"
    cache.write_bytes(b"damaged")
    with pytest.raises(InputError, match="is no timing cache of this TensorRT"):
        build(trt, plan(timing_cache=cache))
    assert cache.read_bytes() == b"damaged"


def test_compute_capabilities():
    module, trt = fake()
    check_capabilities(trt, [89, 120])
    build(trt, plan(compute_capabilities=[89, 120]))
    assert module.config.num_compute_capabilities == 2
    assert module.config.capabilities == {0: "sm89", 1: "x"}
    with pytest.raises(InputError, match="builds for no SM 90, only for 89, 120"):
        check_capabilities(trt, [90, 120])


def test_only_rtx_builds_for_other_gpus():
    module, _ = fake()
    plain = SimpleNamespace(__version__="10.15")
    with pytest.raises(InputError, match=r"TensorRT 10\.15 builds for the GPU that is there"):
        check_capabilities(TensorRT(plain, "tensorrt", module.logger), [89])


# What is installed


@pytest.fixture
def installed(monkeypatch):
    """Puts a module in the place of `tensorrt`."""

    def put(**content) -> None:
        module = ModuleType("tensorrt")
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, "tensorrt", module)

    tensorrt_library.load.cache_clear()
    yield put
    tensorrt_library.load.cache_clear()


def test_no_tensorrt(monkeypatch, installed):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(InputError, match=r"tensorrt cannot be imported .*pip install tensorrt, or"):
        tensorrt_library.load("tensorrt")


@pytest.mark.parametrize("has", [(), ("IKVCacheUpdateLayer",)])
def test_an_old_tensorrt(installed, has):
    installed(__version__="10.3", **dict.fromkeys(has, object))
    with pytest.raises(InputError, match=r"tensorrt 10\.3 has no I.*; install a newer one"):
        tensorrt_library.load("tensorrt")


def test_a_logger_sorts_what_it_is_told(installed):
    severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0, WARNING=2, VERBOSE=4)
    logger = type("ILogger", (), {"Severity": severity, "__init__": lambda self: None})
    installed(__version__="11", ILogger=logger, IKVCacheUpdateLayer=object, IAttention=object)
    trt, told = tensorrt_library.load("tensorrt"), []
    trt.log.log(1, "nobody listens")
    trt.log.sink = lambda *what: told.append(what)
    for each in (0, 1, 2, 4):
        trt.log.log(each, "x")
    assert [kind for kind, _ in told] == ["error", "error", "warning", "verbose"]
    assert trt.name == "TensorRT 11"


def test_a_tensorrt_without_plugins_that_write_their_inputs():
    module, trt = fake()
    module.PreviewFeature = SimpleNamespace()
    with pytest.raises(InputError, match="no plugins that write their inputs"):
        check_plugins(trt)


def test_plugins_that_would_end_the_process(monkeypatch):
    """Nothing is open here, and there is no wheel to name a command for."""
    module, _ = fake()
    monkeypatch.setattr(rtx_library, "SELF", "libnobody_has_this.so")
    monkeypatch.setattr(rtx_library, "LIBRARIES", ("libnobody_has_this.so.1",))
    with pytest.raises(InputError, match=r"open itself as libnobody_has_this\.so.*LD_LIBRARY_PATH"):
        check_plugins(TensorRT(module, "rtx", module.logger))


# The GPU


def driver(monkeypatch, **functions):
    names = ("cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute")
    library = SimpleNamespace(**{name: functions.get(name, lambda *_: 0) for name in names})
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)


def test_no_driver(monkeypatch):
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libnobody_has_this.so")
    with pytest.raises(InputError, match="there is no CUDA driver"):
        cuda_driver.current_device()


@pytest.mark.parametrize("code", [0, 100])
def test_no_gpu(monkeypatch, code):
    driver(monkeypatch, cuInit=lambda _: code)
    with pytest.raises(InputError, match=f"the CUDA driver finds no GPU .error {code}"):
        cuda_driver.current_device()


def test_a_gpu(monkeypatch):
    def put(number):
        def function(target, *_):
            target._obj.value = number(_[0]) if callable(number) else number
            return 0

        return function

    def name(buffer, *_):
        buffer.value = b"NVIDIA Something"
        return 0

    driver(
        monkeypatch,
        cuDeviceGetCount=put(2),
        cuDeviceGetName=name,
        cuDeviceGetAttribute=put({75: 9, 76: 0}.get),
    )
    assert cuda_driver.current_device() == cuda_driver.Device("NVIDIA Something", 90)
