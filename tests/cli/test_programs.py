"""Programs of torch.export on the command line: read, rewritten, compared, written, refused."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mla_opt
from mla_opt.report import OptimizationReport
from tests.cli.conftest import Run
from tests.exports.controls import GENUINE
from tests.files.small_models import proto, save
from tests.programs import exporting


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A block with latent attention, with a text of someone's beside it."""
    path = tmp_path_factory.mktemp("saved") / "m.pt2"
    program = exporting.control(GENUINE.name)
    program.graph_module.meta["custom"] = {"someone": "else's"}
    torch.export.save(program, path, extra_files={"card.md": "trained on air"})
    return path


@pytest.fixture
def program(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(saved, tmp_path / "m.pt2"))


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_program_is_optimized_verified_and_inspected(run: Run, program: Path) -> None:
    report, written = program.with_name("r.json"), program.with_name("m.mla.pt2")
    done = run("optimize", program, "--report", report)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("1 latent attention rewritten, verified")
    assert files(program.parent) == ["m.mla.pt2", "m.pt2", "r.json"]
    told = OptimizationReport.from_json(report.read_text())
    assert told.input is not None
    assert told.output is not None
    assert (told.input.path, told.output.path) == (str(program), str(written))
    assert told.output.bytes == written.stat().st_size
    assert told.output.producer == f"PyTorch {torch.__version__}"
    assert run("verify", program, written).exit_code == 0
    assert run("verify", program, spoilt(written)).exit_code == 4
    (attention,) = json.loads(run("inspect", program, "--json").stdout)["attentions"]
    assert attention["matched"]
    check_metadata(written)
    check_numbers(program, written)


def spoilt(path: Path) -> Path:
    """A program beside another, with one weight doubled."""
    program, other = torch.export.load(path), path.with_name("spoilt.pt2")
    next(iter(program.state_dict.values())).data.mul_(2)
    torch.export.save(program, other)
    return other


def check_metadata(after: Path) -> None:
    """What others have written down is there still."""
    extra = {"card.md": ""}
    custom = torch.export.load(after, extra_files=extra).graph_module.meta["custom"]
    assert extra == {"card.md": "trained on air"}
    assert custom["someone"] == "else's"
    assert custom["mla_opt.version"] == mla_opt.__version__


def check_numbers(before: Path, after: Path) -> None:
    given = GENUINE.build().example(3, 5)
    one, other = (torch.export.load(path).module()(*given) for path in (before, after))
    assert exporting.error([one], [other]) < 5e-5


def test_the_api_takes_the_path(program: Path) -> None:
    result = mla_opt.optimize(program, verify=False)
    assert isinstance(result.model, torch.export.ExportedProgram)
    assert result.report.input is not None
    assert result.report.input.path == str(program)
    assert mla_opt.verify(str(program), result.model, controls=False).passed


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_a_failure_leaves_what_was_there(
    run: Run, program: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = program.with_name("m.mla.pt2")
    written.write_text("precious")

    def half(program: object, stream: object, **others: object) -> None:
        stream.write(b"half")  # type: ignore[attr-defined]
        raise RuntimeError("no space")

    monkeypatch.setattr(torch.export, "save", half)
    done = run("optimize", program, "--force", "--no-verify", "--target", target)
    assert done.exit_code == 2
    assert "m.mla.pt2: PyTorch cannot save the program: RuntimeError: no space" in done.stderr
    assert files(program.parent) == ["m.mla.pt2", "m.pt2"]
    assert written.read_text() == "precious"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cache", "static:64"), "cache 'static' is not for PyTorch programs"),
        (("-o", "m.onnx"), "m.onnx: a program is written; give a name that ends in .pt2"),
        (("-o", "m.pt2", "--force"), "is read as an input"),
        (("-o", "there.pt2"), "there.pt2: exists already; use --force"),
        (("--report", "m.pt2", "--force"), "is read as an input"),
    ],
)
def test_refused(
    run: Run,
    program: Path,
    options: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(program.parent)
    Path("there.pt2").touch()
    done = run("optimize", program.name, *options)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert files(program.parent) == ["m.pt2", "there.pt2"]


def test_an_onnx_model_becomes_no_program(run: Run, tmp_path: Path) -> None:
    model = save(tmp_path / "m.onnx", proto())
    done = run("optimize", model, "-o", tmp_path / "m.pt2")
    assert done.exit_code == 2
    assert "an ONNX model is written; give a name that ends in .onnx" in done.stderr


def edited(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Write the archive anew with another description of the program."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, change(content) if name.endswith("model.json") else content)


def of_another_release(path: Path) -> None:
    def change(content: bytes) -> bytes:
        described = json.loads(content)
        described["schema_version"]["major"] += 1
        return json.dumps({**described, "torch_version": "9.9"}).encode()

    edited(path, change)


def with_an_unknown_operator(path: Path) -> None:
    edited(path, lambda content: content.replace(b"torch.ops.aten.linear", b"torch.ops.no.linear"))


def damaged(path: Path) -> None:
    edited(path, lambda content: content.replace(b'"as_tensor"', b'"as_nothing"'))


def of_other_content(path: Path) -> None:
    edited(path, lambda content: b"[]")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def a_checkpoint(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 3).state_dict(), path)


def several_programs(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/models/left.json", "{}")
        archive.writestr("m/models/right.json", "{}")


def a_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/extra/zeros", bytes(80 << 20))


def with_damaged_packing(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        name = next(each for each in archive.namelist() if each.endswith("model.json"))
        content = archive.read(name)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
        place = archive.infolist()[0].header_offset + 30 + len(name)
    whole = bytearray(path.read_bytes())
    whole[place : place + 40] = b"\xff" * 40
    path.write_bytes(whole)


def of_deep_content(path: Path) -> None:
    edited(path, lambda content: b"[" * 200_000)


def with_a_password(path: Path) -> None:
    """Bit 0 of the flags, in the entry's own header and in the directory."""
    whole = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = whole.find(mark)
        while place >= 0:
            whole[place + offset] |= 1
            place = whole.find(mark, place + 4)
    path.write_bytes(whole)


UNUSABLE: dict[Callable[[Path], None], str] = {
    of_another_release: "was written by PyTorch 9.9, and this is",
    with_an_unknown_operator: "calls operators that are not registered here: no::linear;",
    damaged: f"PyTorch {torch.__version__} does not load it: ",
    of_other_content: "is damaged: its models/model.json describes no program",
    truncated: "is truncated, damaged, or no program of torch.export",
    a_bomb: "would unpack to more than it holds",
    with_damaged_packing: "is truncated, damaged, or no program of torch.export",
    of_deep_content: "is truncated, damaged, or no program of torch.export",
    with_a_password: "is truncated, damaged, or no program of torch.export",
    a_checkpoint: "is not a program of torch.export but a zip archive",
    several_programs: "holds programs called left, right; save one with torch.export.save",
}


@pytest.mark.parametrize("spoil", UNUSABLE, ids=lambda spoil: spoil.__name__)
def test_a_file_that_cannot_be_loaded(
    run: Run, program: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    spoil(program)
    for command in (("optimize", program), ("inspect", program), ("verify", program, program)):
        done = run(*command)
        assert done.exit_code == 2
        assert f"{program}: {UNUSABLE[spoil]}" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not caplog.records
    assert files(program.parent) == ["m.pt2"]


def test_without_pytorch(run: Run, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = run("inspect", program)
    assert done.exit_code == 2
    assert "is a PyTorch program, and PyTorch is missing: pip install torch" in done.stderr


def test_commands_for_onnx_say_so(run: Run, program: Path) -> None:
    done = run("bench", program, program)
    assert done.exit_code == 2
    assert "optimize, inspect and verify take programs" in done.stderr


def test_help_says_that_loading_can_run_code(run: Run) -> None:
    for command in ("optimize", "inspect", "verify"):
        assert "can run code" in " ".join(run(command, "--help").stdout.split())
