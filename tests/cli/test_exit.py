"""How the command line ends: codes, one-line errors, help, colour, and what it imports."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mla_opt.errors import InputError, PassError
from tests.cli.conftest import Run
from tests.cli.fakes import FakeApi
from tests.files.small_models import proto, save, save_external

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from mla_opt.cli import main; main()"]


def not_onnx(path: Path) -> None:
    path.write_text("text")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    path.write_bytes(proto().SerializeToString()[:200])


def old_opset(path: Path) -> None:
    save(path, proto(11))


def without_its_data(path: Path) -> None:
    save_external(path)


def with_data_elsewhere(path: Path) -> None:
    save_external(path, "../w.bin")


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("command", ["inspect", "optimize"])
@pytest.mark.parametrize(
    "spoil",
    [not_onnx, empty, truncated, old_opset, without_its_data, with_data_elsewhere, folder],
)
def test_bad_input_is_one_line_with_the_file(
    run: Run, api: FakeApi, tmp_path: Path, spoil: Callable[[Path], None], command: str
) -> None:
    path = tmp_path / "bad.onnx"
    spoil(path)
    result = run(command, path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert [file.name for file in tmp_path.iterdir()] == ["bad.onnx"]


def test_unexpected_error_tells_how_to_see_more(run: Run, api: FakeApi, model: Path) -> None:
    api.error = RuntimeError("boom\nin two lines")
    result = run("inspect", model)
    assert result.exit_code == 1
    hint = "(--verbose or MLA_OPT_DEBUG=1 shows the traceback)"
    assert result.stderr == f"error: RuntimeError: boom in two lines {hint}\n"


def test_a_graph_in_a_message_is_not_told_but_its_cause(
    run: Run, api: FakeApi, model: Path
) -> None:
    dump = RuntimeError("In clone_graph with args (Graph(" + 500 * "%x<FLOAT,[1]>, ")
    dump.__cause__ = ValueError("node Add_3 reads what nothing makes")
    api.error = dump
    told = run("inspect", model).stderr
    assert told.startswith("error: ValueError: node Add_3 reads what nothing makes (")
    dump.__cause__ = None
    told = run("inspect", model).stderr
    assert told.startswith("error: RuntimeError: In clone_graph")
    assert len(told) < 400


def test_a_message_is_shown_and_not_obeyed(run: Run, api: FakeApi, model: Path) -> None:
    api.error = InputError("node \x1b]0;owned\x07 of " + "many letters " * 1000 + "export it again")
    told = run("inspect", model).stderr
    assert told.startswith("error: node \\x1b]0;owned\\x07 of many letters")
    assert told.endswith("many letters export it again\n")
    assert len(told) < 2100


def test_warnings_of_libraries_are_not_among_the_messages(tmp_path: Path) -> None:
    model = proto()
    model.graph.node[0].input[0] = "gone"
    command = [*COMMAND, "inspect", str(save(tmp_path / "m.onnx", model))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_broken_pass_is_unexpected(run: Run, api: FakeApi, model: Path) -> None:
    api.error = PassError("pass clean_up after fuse: broken")
    result = run("optimize", model)
    assert result.exit_code == 1
    assert "pass clean_up after fuse: broken" in result.stderr
    assert not model.with_name("m.mla.onnx").exists()


def test_traceback_on_demand(
    run: Run, api: FakeApi, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.error = RuntimeError("boom")
    assert "Traceback" in run("inspect", model, "--verbose").stderr
    monkeypatch.setenv("MLA_OPT_DEBUG", "1")
    assert "Traceback" in run("inspect", model).stderr
    monkeypatch.setenv("MLA_OPT_DEBUG", "0")
    assert "Traceback" not in run("inspect", model).stderr


def test_interrupt(run: Run, api: FakeApi, model: Path) -> None:
    api.error = KeyboardInterrupt()
    result = run("optimize", model)
    assert result.exit_code == 130
    assert result.stderr == "error: interrupted\n"
    assert not model.with_name("m.mla.onnx").exists()


@pytest.mark.parametrize("command", [(), ("optimize",), ("inspect",), ("verify",), ("demo",)])
def test_help_documents_the_exit_codes(run: Run, command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    for code in (
        "0 done",
        "2 bad usage or bad input",
        "3 nothing matched",
        "4 verification failed",
    ):
        assert code in text


def test_no_arguments_shows_help(run: Run) -> None:
    result = run()
    assert result.exit_code == 2
    assert "optimize" in result.stdout + result.stderr


def test_version(run: Run) -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("mla-opt ")


def test_help_imports_nothing_heavy() -> None:
    """Help is quick because it loads neither numpy nor any of what the work needs."""
    program = (
        "import sys\n"
        "from mla_opt.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'torch', 'rich'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", program, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.endswith("heavy: []\n")


def test_colour_on_a_terminal_only(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.onnx")
    command = [*COMMAND, "verify", missing, missing]
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    environment["TERM"] = "xterm"
    options = {"cwd": ROOT, "env": environment, "stdout": subprocess.DEVNULL, "check": False}
    piped = subprocess.run(command, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload]
    assert (piped.returncode, b"\x1b" in piped.stderr) == (2, False)
    reader, writer = pty.openpty()
    done = subprocess.run(command, stderr=writer, **options)  # type: ignore[call-overload]
    os.close(writer)
    shown = os.read(reader, 10_000)
    os.close(reader)
    assert done.returncode == 2
    assert b"\x1b[31m" in shown
    assert b"no such file" in shown
