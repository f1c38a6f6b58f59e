"""What runs on a GPU (tests/gpu), on the emulated one: it must be right the first time."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest

from tests.gpu import __main__ as script
from tests.gpu import benchmark, cases, checks, oracle, peers
from tests.gpu.decode import Point, Step, Timing, copies_for
from tests.gpu.driver import Device
from tests.gpu.kernels import Runner
from tests.kernels.cuda.problems import check, expected, operands

SMALL = [Point(heads, keys, 1) for heads in (16, 128) for keys in (33, 64)]
RATES = benchmark.Rates(copy=4e12, product=8e14)


@pytest.fixture
def runner(emulator, monkeypatch):
    emulator.become("90", 0)
    monkeypatch.setattr(peers, "available", dict)
    return Runner(Device(os.fspath(emulator.library.path)), emulator.library)


@pytest.mark.parametrize("case", cases.QUICK.values(), ids=cases.QUICK.keys())
def test_quick_cases(runner, case):
    small = case.but(past=min(case.past, 100))
    check(small, *runner.run(small))


@pytest.mark.parametrize("seed", range(12))
def test_the_fast_oracle_is_the_reference(seed):
    case = cases.random_case(seed)
    case = case.but(past=min(case.past, 60), heads=min(case.heads, 17))
    arrays = operands(case)
    wanted, got = expected(case, arrays), oracle.expected(case, arrays)
    assert set(got) == set(wanted)
    for name, array in wanted.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-9, atol=1e-12)


def test_random_cases_are_legal_and_right(runner):
    for seed in (0, 1, 5):
        case = cases.random_case(seed)
        case = case.but(past=min(case.past, 60), heads=min(case.heads, 17))
        check(case, *runner.run(case))


def test_what_is_written_beyond_a_tensor_is_noticed(runner, monkeypatch):
    def spoil(problem, multiprocessors=None, stream=0):
        end = np.full(1, 7, np.uint8)
        size = 2 * problem.batch * problem.heads * problem.query_len * problem.kv_lora_rank
        runner.device.copy(problem.output + size, runner.device.upload(end).address, 1)

    monkeypatch.setattr(runner, "launch", spoil)
    with pytest.raises(AssertionError, match="something was written beyond output"):
        runner.run(cases.QUICK["narrow"])


def test_graph_and_streams(runner):
    checks.check_graph(runner, 16, capacity=70)
    checks.check_streams(runner, past=70, turns=2)


def test_a_graph_that_keeps_its_lengths_is_noticed(runner, monkeypatch):
    """Here a graph whose replay does nothing."""
    monkeypatch.setattr("tests.gpu.driver.Graph.launch", lambda self, stream: None)
    with pytest.raises(AssertionError):
        checks.check_graph(runner, 16, capacity=70)


def test_step_computes(runner):
    """The timed step is a real one: no row of the output is left as it was."""
    point = Point(16, 40, 2)
    step = Step(runner.device, runner.library, point, copies_for(runner.device, point))
    assert step.time(2).least > 0
    output = runner.device.download(step._output, np.empty((2, 16, 512), np.uint16))
    assert not (output == 0xFFFF).any()


def test_benchmark_table(runner):
    rows = list(benchmark.run(runner.device, runner.library, SMALL, time.monotonic() + 60, turns=2))
    assert [row.point for row in rows] == SMALL
    for row in rows:
        assert benchmark.line(row, RATES).count("|") == 10
    assert json.dumps(benchmark.to_json(rows, RATES))
    late = list(benchmark.run(runner.device, runner.library, SMALL, 0.0))
    assert {row.note for row in late} == {"no time left"}
    assert benchmark.line(late[0], RATES).count("|") == 10


def test_targets():
    point = Point(128, 16384, 32)
    fast = benchmark.Row(benchmark.OURS, point, Timing(1e-4, 1e-4))
    assert benchmark.targets([fast], RATES) == []
    slow = benchmark.Row(benchmark.OURS, point, Timing(1e-3, 1e-3))
    (missed,) = benchmark.targets([slow], RATES)
    assert missed == "H 128, T 16384, B 32: 146 TFLOP/s"
    peer = benchmark.Row("peer", point, Timing(8e-5, 8e-5))
    (missed,) = benchmark.targets([fast, peer], RATES)
    assert missed.endswith("0.80 of the best peer's speed")
    few = benchmark.Row(benchmark.OURS, Point(16, 16384, 32), Timing(1e-3, 1e-3))
    (missed,) = benchmark.targets([few], RATES)
    assert missed.endswith("of copying")


def test_points_cover_the_table():
    every = benchmark.points()
    assert {p.heads for p in every} == {16, 64, 128}
    assert {p.keys for p in every} >= {1024, 65536}
    assert {p.batch for p in every} >= {1, 128}


@pytest.fixture
def on_emulator(emulator, runner, monkeypatch):
    monkeypatch.setattr(script, "Device", lambda: runner.device)
    monkeypatch.setattr(script, "device_reason", lambda: None)
    monkeypatch.setattr(script, "library_for", lambda device, architecture: emulator.library)
    monkeypatch.setattr(script, "RANDOM_CASES", 1)
    monkeypatch.setattr(cases, "ALL", {"one": cases.QUICK["narrow"]})
    monkeypatch.setattr(checks, "check_graph", lambda runner, heads: None)
    monkeypatch.setattr(checks, "check_streams", lambda runner: None)
    monkeypatch.setattr(cases, "random_case", lambda seed: cases.QUICK["512 + 0"])
    monkeypatch.setattr(script.sanitizer, "find", lambda: None)
    monkeypatch.setattr(benchmark, "points", lambda: SMALL[:1])
    monkeypatch.setattr(benchmark, "measure", lambda device: benchmark.Rates(1e12, None))


def test_the_whole_script(on_emulator, tmp_path, capsys):
    assert script.main(["-o", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "emulated, architecture 90, 2 multiprocessors" in said
    assert "5 of 5 checks against float64 hold" in said
    assert "compute-sanitizer compute-sanitizer: did not run: not there" in said
    assert "| mla-opt | 16 | 33 | 1 |" in said
    assert said == (tmp_path / "gpu.log").read_text()
    assert len(json.loads((tmp_path / "gpu.json").read_text())["rows"]) == 1


def test_the_script_fails_when_a_check_does(on_emulator, monkeypatch, capsys):
    def wrong(runner, heads):
        raise AssertionError("seven")

    monkeypatch.setattr(checks, "check_graph", wrong)
    assert script.main(["--only", "checks"]) == 1
    said = capsys.readouterr().out
    assert said.count("WRONG graph") == 2
    assert "seven" in said
    assert "FAILED: 2" in said


def test_the_script_says_that_there_is_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr(script, "device_reason", lambda: "no GPU: because")
    assert script.main([]) == 2
    assert capsys.readouterr().err == "no GPU: because\n"


def test_sanitizer_tools(tmp_path, monkeypatch):
    """A tool that finds something, one that is content, one that cannot run here."""
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(
        "#!/bin/sh\ncase $2 in memcheck) echo found; exit 99;;"
        " racecheck) echo 'Device not supported'; exit 1;; esac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setattr(script.sanitizer, "find", lambda: str(tool))
    outcome = {name: content for name, content, _ in script.sanitizer.run(20)}
    assert outcome == {"memcheck": False, "racecheck": None, "synccheck": True, "initcheck": True}
