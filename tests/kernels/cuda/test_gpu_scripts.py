"""What runs on a GPU (tests/gpu), on the emulated one: it must be right the first time."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from mla_opt.kernels.cuda_library import CudaLibrary
from tests.gpu import __main__ as script
from tests.gpu import benchmark, cases, checks, oracle, peers, recorded, summary
from tests.gpu.deadline import Deadline
from tests.gpu.decode import Point, Step, Timing, copies_for
from tests.gpu.driver import Device
from tests.gpu.kernels import Runner
from tests.kernels.cuda.problems import check, expected, operands

SMALL = [Point(heads, keys, 1) for heads in (16, 128) for keys in (33, 64)]
RATES = benchmark.Rates(copy=4e12, product=8e14)


@pytest.fixture
def runner(emulator, monkeypatch):
    emulator.become("90", 0)
    monkeypatch.setattr(peers, "available", lambda: ({}, {"FlashInfer": "no such package"}))
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


def test_keys_that_do_not_come_in_bulk_are_noticed(emulator, runner, monkeypatch):
    """Or that do where none should."""
    checks.check_bulk_loads(runner)
    emulator.become("90a", 0)
    with pytest.raises(AssertionError):
        checks.check_bulk_loads(runner)
    monkeypatch.setattr(CudaLibrary, "architectures", ("90a",))
    checks.check_bulk_loads(runner)
    with emulator.without_tensor_maps(), pytest.raises(AssertionError):
        checks.check_bulk_loads(runner)


def test_benchmark_says_how_keys_come(emulator, runner):
    emulator.become("90a", 0)
    rows = measured(runner, wanted=[Point(64, 100, 1), Point(16, 100, 1)])
    assert [row.loads for row in rows] == ["TMA", "cp.async"]


def test_step_computes(runner):
    """The timed step is a real one: no row of the output is left as it was."""
    point = Point(16, 40, 2)
    step = Step(runner.device, runner.library, point, copies_for(runner.device, point))
    assert step.time(2).least > 0
    output = runner.device.download(step._output, np.empty((2, 16, 512), np.uint16))
    assert not (output == 0xFFFF).any()


def measured(runner, until=60.0, others=(), wanted=SMALL):
    until += time.monotonic()
    rows = benchmark.run(runner.device, runner.library, wanted, until, dict(others), turns=2)
    return list(rows)


def test_benchmark_table(runner):
    rows = measured(runner)
    assert [row.point for row in rows] == SMALL
    for text in summary.long_table(rows, RATES)[1:]:
        assert text.count("|") == 11
    assert json.dumps(benchmark.to_json(rows, RATES, {}))
    late = measured(runner, until=-1.0)
    assert {row.note for row in late} == {"no time left"}
    assert summary.line(late[0], RATES).count("|") == 11
    assert summary.verdicts(late, RATES)[0].endswith("NOT MEASURED")


@pytest.mark.sweep
def test_a_peer_that_fails_is_told_and_left_in_the_end(runner, monkeypatch):
    tried = []

    def fail(prepare, point, copies, turns):
        tried.append(point)
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(peers, "time_step", fail)
    rows = measured(runner, others={"peer": object()})
    assert tried == SMALL[: benchmark.MOST_FAILURES]
    notes = {row.note for row in rows if row.kernel == "peer"}
    assert notes == {"RuntimeError: no kernel for this"}
    assert all(row.timing for row in rows if row.kernel == benchmark.OURS)
    said = summary.summary(rows, RATES, {"other": "No module"})
    assert "did not run everywhere: peer (RuntimeError: no kernel for this)" in said
    assert "not there: other (No module)" in said


@pytest.mark.sweep
def test_a_peer_that_is_short_of_memory_is_tried_elsewhere(runner, monkeypatch):
    def fail(*_):
        raise MemoryError("out of memory")

    monkeypatch.setattr(peers, "time_step", fail)
    rows = measured(runner, others={"peer": object()})
    assert [row.point for row in rows if row.kernel == "peer"] == SMALL


def test_peers_are_timed_on_as_many_caches_as_ours(runner, monkeypatch):
    given = []
    monkeypatch.setattr(
        peers, "time_step", lambda prepare, point, copies, turns: given.append(copies)
    )
    measured(runner, others={"peer": object()}, wanted=SMALL[:1])
    assert given == [copies_for(runner.device, SMALL[0])]


def row(seconds, heads=128, keys=16384, batch=32, kernel=benchmark.OURS):
    return benchmark.Row(kernel, Point(heads, keys, batch), Timing(seconds, seconds))


def test_verdicts():
    copying, product, peer = summary.verdicts([row(1e-4)], RATES)
    assert copying.endswith("NOT MEASURED")
    assert "met at 1 of 1 points, the least is 1460 TFLOP/s (H 128, T 16384, B 32)" in product
    assert peer.endswith("NOT MEASURED")
    rows = [row(1e-3), row(1e-4, keys=65536), row(8e-4, kernel="peer"), row(2e-3, kernel="slow")]
    copying, product, peer = summary.verdicts(rows, RATES)
    assert "MISSED at 1 of 2 points, the least is 146 TFLOP/s (H 128, T 16384, B 32)" in product
    assert "MISSED at 1 of 1 points, the least is 0.80 (H 128, T 16384, B 32)" in peer
    assert (
        "met at 1 of 1 points"
        in summary.verdicts([row(1e-3), row(9.1e-4, kernel="peer")], RATES)[2]
    )
    copying, *_ = summary.verdicts([row(1e-3, heads=16), row(1.7e-4, heads=64)], RATES)
    assert "MISSED at 1 of 2 points, the least is 15% (H 16, T 16384, B 32)" in copying


def test_short_table():
    rows = [
        replace(row(1e-3, batch=8), loads="TMA"),
        row(1e-3, batch=8, kernel="peer"),
        benchmark.Row(benchmark.OURS, Point(16, 1024, 1), None, "no time left"),
        row(2e-3, batch=8, kernel="other"),
        row(5e-5, heads=16, keys=1024, batch=1, kernel="other"),
    ]
    header, _, first, second = summary.short_table(rows, RATES)
    assert header.endswith("| of a product | peer us | other us |")
    assert first == "| 16 | 1024 | 1 | - | no time left | | | | | - | 50.0 |"
    assert second == "| 128 | 16384 | 8 | TMA | 1000.0 | 153 | 4% | 37 | 5% | 1000.0 | 2000.0 |"
    assert {text.count("|") for text in (header, first, second)} == {12}


def test_a_record_has_both_tables():
    rows = [replace(row(1e-3, batch=8), loads="TMA"), row(1e-3, batch=8, kernel="peer")]
    text = recorded.record("python -m tests.gpu", "90a", rows, RATES, ["FlashInfer"]).text
    assert "`python -m tests.gpu`" in text
    assert "\nkernels for 90a" in text
    assert "; copying 4000 GB/s, float16 product 800 TFLOP/s.\n" in text
    assert "\nNot there: FlashInfer.\n" in text
    assert "| 128 | 16384 | 8 | TMA | 1000.0 | 153 | 4% | 37 | 5% | 1000.0 |\n" in text
    assert "| 0.9 of the best peer's speed, everywhere | met at 1 of 1 points, the least" in text


def test_points_cover_the_table():
    every = benchmark.points()
    assert {p.heads for p in every} == {16, 64, 128}
    assert {p.keys for p in every} >= {1024, 65536}
    assert {p.batch for p in every} >= {1, 128}
    assert len(set(every)) == len(every) == 48
    started = every[:12]
    assert {p.heads for p in started} == {16, 64, 128}
    for target in summary.TARGETS[:2]:
        slow = [row(1.0, p.heads, p.keys, p.batch) for p in started]
        assert any(target.value(one, [], RATES) is not None for one in slow)


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
    assert "6 of 6 checks against float64 hold" in said
    assert "compute-sanitizer compute-sanitizer: did not run: not there" in said
    assert "| 16 | 33 | 1 | cp.async |" in said
    assert "not there: FlashInfer (no such package)" in said
    assert said.count("target ") == 3
    kept = (tmp_path / "gpu.log").read_text().splitlines()
    assert [text for text in kept if text in said.splitlines()] == said.splitlines()
    assert any(text.startswith("| mla-opt | 16 | 33 | 1 | cp.async |") for text in kept)
    assert len(json.loads((tmp_path / "gpu.json").read_text())["rows"]) == 1


def test_the_whole_script_records(on_emulator, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# What was measured\n")
    assert (
        script.main(["--record", str(page), "-o", str(tmp_path / "out"), "--seconds", "300"]) == 0
    )
    text = page.read_text()
    assert "## emulated (2 multiprocessors)\n\n### " in text
    assert "`python -m tests.gpu --seconds 300`" in text
    assert "| 16 | 33 | 1 | cp.async |" in text


def test_checks_alone_are_not_recorded(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("# What was measured\n")
    with pytest.raises(SystemExit):
        script.main(["--only", "checks", "--record", str(page)])
    assert "nothing is measured with --only checks" in capsys.readouterr().err


def test_checks_that_there_is_no_time_for_are_counted(on_emulator, capsys):
    assert script.main(["--only", "checks", "--seconds", "0"]) == 0
    assert "0 of 0 checks against float64 hold; no time for 6 more" in capsys.readouterr().out


def test_a_run_that_hangs_ends_with_what_there_is(on_emulator, monkeypatch, capsys):
    left, made = threading.Event(), []
    measure = benchmark.run

    def deadline(seconds, report):
        made.append(Deadline(seconds, report, lambda code: left.set()))
        return made[0]

    def hang(*arguments, **options):
        yield from measure(*arguments, **options)
        threading.Thread(target=made[0]._over).start()
        assert left.wait(30)

    monkeypatch.setattr(benchmark, "run", hang)
    monkeypatch.setattr(script, "Deadline", deadline)
    script.main(["--only", "bench"])
    said = capsys.readouterr().out
    assert "HUNG: ended after" in said
    assert said.index("| 16 | 33 | 1 |") < said.index("HUNG")


def test_a_run_that_ends_is_left_alone():
    called = []
    with Deadline(0.05, lambda: called.append("report"), called.append):
        pass
    time.sleep(0.1)
    assert called == []
    with Deadline(0.0, lambda: called.append("report"), called.append):
        time.sleep(0.1)
    assert called == ["report", 1]


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
    until = time.monotonic() + 60
    outcome = {name: content for name, content, _ in script.sanitizer.run(20, until)}
    assert outcome == {"memcheck": False, "racecheck": None, "synccheck": True, "initcheck": True}
    late = list(script.sanitizer.run(20, time.monotonic()))
    assert {(content, said) for _, content, said in late} == {(None, "no time left")}
