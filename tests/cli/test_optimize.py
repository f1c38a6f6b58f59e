"""``mla-opt optimize``: what it asks of the API, writes, prints, and how it ends."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from mla_opt.errors import NothingMatchedError, VerificationError
from mla_opt.files.hashed import sha256
from mla_opt.kernels import library
from mla_opt.report import OptimizationReport
from tests.cli.conftest import Run
from tests.cli.fakes import FakeApi
from tests.files.small_models import WEIGHT, save_external
from tests.report import examples

DEFAULTS = {
    "target": "onnxruntime",
    "absorb": "auto",
    "cache": "keep",
    "cache_type": "keep",
    "weights": "auto",
    "matmul_nbits": "keep",
    "prefill": "auto",
    "verify": True,
    "passes": None,
    "allow_unmatched": False,
    "keep_activation_quantization": False,
}


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def with_report(error: Exception, report: OptimizationReport) -> Exception:
    error.report = report  # type: ignore[attr-defined]
    return error


def test_writes_beside_the_input_by_default(run: Run, api: FakeApi, model: Path) -> None:
    result = run("optimize", model)
    assert result.exit_code == 0, result.stderr
    assert files(model.parent) == ["m.mla.onnx", "m.onnx"]
    onnx.checker.check_model(model.with_name("m.mla.onnx").read_bytes())
    assert api.asked == DEFAULTS


def test_prints_sites_and_what_was_written(run: Run, api: FakeApi, model: Path) -> None:
    result = run("optimize", model)
    assert "layers 0-2 (3" in result.stdout
    assert "query-depends-on-latent" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last.startswith(f"wrote {model.with_name('m.mla.onnx')} (")
    assert last.endswith("3 latent attentions rewritten, verified")
    assert result.stderr == ""
    assert "\x1b" not in result.stdout


def test_every_file_is_told_with_its_size(run: Run, api: FakeApi, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    result = run("optimize", save_external(tmp_path / "m.onnx"))
    assert result.exit_code == 0, result.stderr
    output, data = tmp_path / "m.mla.onnx", tmp_path / "m.mla.onnx.data"
    assert data.stat().st_size == WEIGHT.nbytes
    said = f"wrote {output} ({output.stat().st_size} B) and {data} (2.4 kB): 3 latent attentions"
    assert said in result.stdout


def test_shared_weights_are_not_written_again(run: Run, api: FakeApi, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    result = run("optimize", save_external(tmp_path / "m.onnx"), "--weights-files", "share")
    assert result.exit_code == 0, result.stderr
    assert files(tmp_path) == ["m.mla.onnx", "m.onnx", "w.bin"]
    assert "m.mla.onnx (" in result.stdout
    assert ", which shares w.bin: 3 latent attentions" in result.stdout
    assert api.asked == DEFAULTS


def test_what_cannot_be_shared_is_told_before_the_work(
    run: Run, api: FakeApi, model: Path, tmp_path: Path
) -> None:
    inside = run("optimize", model, "--weights-files", "share")
    assert (inside.exit_code, inside.stderr.count("\n")) == (2, 1)
    assert "keeps its weights inside" in inside.stderr
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "other").mkdir()
    given = (save_external(tmp_path / "m2.onnx"), "-o", tmp_path / "other" / "out.onnx")
    elsewhere = run("optimize", *given, "--weights-files", "share")
    assert (elsewhere.exit_code, elsewhere.stderr.count("\n")) == (2, 1)
    assert "cannot share" in elsewhere.stderr
    assert not api.asked


@pytest.mark.parametrize("share", ["copy", "share"])
def test_files_are_hashed_for_a_report(run: Run, api: FakeApi, tmp_path: Path, share: str) -> None:
    """The input's as they are copied; shared ones, which are not, are read for both hashes."""
    files = [tmp_path / name for name in ("m.onnx", "w.bin")]
    files[1].write_bytes(WEIGHT.tobytes())
    report, output = tmp_path / "report.json", tmp_path / "m.mla.onnx"
    given = (save_external(files[0]), "--report", report, "--weights-files", share)
    assert run("optimize", *given).exit_code == 0
    told = json.loads(report.read_text())
    assert told["input"]["sha256"] == sha256(files)
    data = files[1] if share == "share" else tmp_path / "m.mla.onnx.data"
    assert told["output"]["external_data"] == [data.name]
    assert told["output"]["sha256"] == sha256([output, data])


@pytest.mark.parametrize("outcome", ["written", "nothing", "nothing, told"])
def test_nothing_is_hashed_for_nobody(
    run: Run, api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    made: list[object] = []
    original = hashlib.sha256

    def counted(*content: bytes) -> Any:
        made.append(content)
        return original(*content)

    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    source = save_external(tmp_path / "m.onnx")
    expected, report, options = sha256([source, tmp_path / "w.bin"]), tmp_path / "r.json", []
    if outcome != "written":
        api.error = with_report(NothingMatchedError("nothing"), OptimizationReport())
    if outcome == "nothing, told":
        options = ["--report", report]
    monkeypatch.setattr(hashlib, "sha256", counted)
    assert run("optimize", source, *options).exit_code == (0 if outcome == "written" else 3)
    if options:
        assert json.loads(report.read_text())["input"]["sha256"] == expected
    assert bool(made) == bool(options)


def test_without_a_kernel_library_it_says_so_once(
    run: Run, api: FakeApi, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "the kernel library" not in run("optimize", model).stdout
    monkeypatch.setattr(library, "LIBRARY", model.with_name("none.so"))
    library.load_library.cache_clear()
    try:
        result = run("optimize", model, "--force")
        last = result.stdout.splitlines()[-1]
        assert last.startswith("note: here the model runs by the function bodies in it")
        assert last.endswith("install a C++ compiler and run `python -m mla_opt.kernels`")
        assert result.stdout.count("the kernel library") == 1
        assert (result.exit_code, result.stderr) == (0, "")
        portable = run("optimize", model, "--force", "--target", "portable")
        assert "the kernel library" not in portable.stdout
    finally:
        library.load_library.cache_clear()


def test_options_reach_the_api(run: Run, api: FakeApi, model: Path) -> None:
    result = run(
        "optimize", model, "-o", model.with_name("o.onnx"), "--target", "portable",
        "--absorb", "fold-q", "--cache", "static:4096", "--prefill", "absorbed", "--no-verify",
        "--passes", "find_latent_attention, clean_up", "--allow-unmatched",
        "--keep-activation-quantization", "--matmul-nbits", "kernel",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert api.asked == {
        "target": "portable",
        "absorb": "fold-q",
        "cache": "static:4096",
        "cache_type": "keep",
        "keep_activation_quantization": True,
        "weights": "auto",
        "matmul_nbits": "kernel",
        "prefill": "absorbed",
        "verify": False,
        "passes": ("find_latent_attention", "clean_up"),
        "allow_unmatched": True,
    }
    assert files(model.parent) == ["m.onnx", "o.onnx"]


@pytest.mark.parametrize("cache", ["keep", "packed", "static", "static:1", "static:1k"])
def test_caches(run: Run, api: FakeApi, model: Path, cache: str) -> None:
    assert run("optimize", model, "--cache", cache).exit_code == 0
    assert api.asked["cache"] == cache


@pytest.mark.parametrize(
    "options",
    [
        ("--cache", "paged"),
        ("--cache", "static:"),
        ("--cache", "static:0"),
        ("--cache", "static:-1"),
        ("--cache", "static:many"),
        ("--cache", "keep:4"),
        ("--absorb", "all"),
        ("--target", "tpu"),
        ("--prefill", "both"),
        ("--passes", "a,,b"),
        ("--passes", ""),
        ("--no-such-option",),
    ],
)
def test_bad_usage(run: Run, api: FakeApi, model: Path, options: tuple[str, ...]) -> None:
    result = run("optimize", model, *options)
    assert result.exit_code == 2
    assert options[0] in result.stderr
    assert not any(word in result.stderr for word in ("Value error", "Input should", "pydantic"))
    assert files(model.parent) == ["m.onnx"]
    assert not api.asked


def test_report_file(run: Run, api: FakeApi, model: Path) -> None:
    path = model.with_name("report.json")
    assert run("optimize", model, "--report", path).exit_code == 0
    report = OptimizationReport.from_json(path.read_text())
    assert report.input is not None
    assert report.output is not None
    assert report.input.sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    written = model.with_name("m.mla.onnx")
    assert report.output.sha256 == hashlib.sha256(written.read_bytes()).hexdigest()
    assert report.options["cache"] == "keep"
    assert report.sites == api.report.sites


def test_nothing_matched(run: Run, api: FakeApi, model: Path) -> None:
    report = OptimizationReport(refusals=(examples.refusal(0),))
    api.error = with_report(NothingMatchedError("no latent attention was found"), report)
    path = model.with_name("report.json")
    result = run("optimize", model, "--report", path)
    assert result.exit_code == 3
    assert result.stderr == "error: no latent attention was found\n"
    assert "query-depends-on-latent" in result.stdout
    assert files(model.parent) == ["m.onnx", "report.json"]
    data = json.loads(path.read_text())
    assert data["output"] is None
    assert data["input"]["path"] == str(model)
    assert data["refusals"][0]["code"] == "query-depends-on-latent"


def test_verification_failed(run: Run, api: FakeApi, model: Path) -> None:
    api.error = with_report(VerificationError("logits: error 0.3"), examples.report())
    result = run("optimize", model)
    assert result.exit_code == 4
    assert result.stderr == "error: logits: error 0.3\n"
    assert files(model.parent) == ["m.onnx"]


def test_never_overwrites_without_force(run: Run, api: FakeApi, model: Path) -> None:
    output = model.with_name("m.mla.onnx")
    output.write_text("precious")
    result = run("optimize", model)
    assert result.exit_code == 2
    assert "--force" in result.stderr
    assert result.stderr.count("\n") == 1
    assert output.read_text() == "precious"
    assert not api.asked, "the work was done before the output was looked at"
    assert run("optimize", model, "--force").exit_code == 0
    assert output.read_bytes() != b"precious"


def test_report_is_not_overwritten_either(run: Run, api: FakeApi, model: Path) -> None:
    path = model.with_name("report.json")
    path.write_text("precious")
    result = run("optimize", model, "--report", path)
    assert (result.exit_code, path.read_text()) == (2, "precious")
    assert files(model.parent) == ["m.onnx", "report.json"]


@pytest.mark.parametrize("option", ["-o", "--report"])
def test_the_input_is_never_replaced(run: Run, api: FakeApi, model: Path, option: str) -> None:
    before = model.read_bytes()
    result = run("optimize", model, option, model, "--force")
    assert result.exit_code == 2
    assert "is read as an input" in result.stderr
    assert model.read_bytes() == before


LINKS: dict[str, Callable[[Path, Path], object]] = {
    "symbolic": lambda link, target: link.symlink_to(target),
    "hard": lambda link, target: link.hardlink_to(target),
}


@pytest.mark.parametrize("name", ["-o", "-o data", "--report"])
@pytest.mark.parametrize("link", ["", *LINKS])
def test_the_weights_of_the_input_are_never_replaced(
    run: Run, api: FakeApi, tmp_path: Path, name: str, link: str
) -> None:
    """By any name: the file itself, a link to it, or the data file that the output would have."""
    weights = tmp_path / "w.data"
    weights.write_bytes(WEIGHT.tobytes())
    model = save_external(tmp_path / "m.onnx", "w.data")
    target = weights
    if link:
        target = tmp_path / "links" / "link.data"
        target.parent.mkdir()
        LINKS[link](target, weights)
    if link == "hard":
        # Refused when it is read: it could be a file from elsewhere.
        assert "several hard links" in run("inspect", model).stderr
    option, _, data = name.partition(" ")
    given = target.with_suffix("") if data else target
    result = run("optimize", model, option, given, "--force")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert link == "hard" or f"{target}: is read as an input" in result.stderr
    assert weights.read_bytes() == WEIGHT.tobytes()
    assert not api.asked, "the work was done before the output was looked at"


@pytest.mark.parametrize("suffix", ["", ".data"])
def test_output_and_report_must_differ(run: Run, api: FakeApi, model: Path, suffix: str) -> None:
    both = model.with_name("both")
    result = run("optimize", model, "-o", both, "--report", f"{both}{suffix}")
    assert result.exit_code == 2
    assert "both the output and the report" in result.stderr


def test_quiet_prints_errors_only(run: Run, api: FakeApi, model: Path) -> None:
    result = run("optimize", model, "--quiet", "--time-passes")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    result = run("optimize", model, "--quiet")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--force" in result.stderr


def test_verbose_tells_each_pass_on_stderr(run: Run, api: FakeApi, model: Path) -> None:
    result = run("optimize", model, "--verbose")
    assert "pass find_latent_attention: 3 matched, 2 rewritten, 0.250 s" in result.stderr
    assert "verify: prefill" in result.stderr
    assert "folding is larger" in result.stdout


def test_time_passes(run: Run, api: FakeApi, model: Path) -> None:
    assert "find_latent_attention" not in run("optimize", model).stdout
    result = run("optimize", model, "--time-passes", "--force")
    assert "find_latent_attention" in result.stdout
    assert "0.125" in result.stdout


def test_print_between_passes(run: Run, api: FakeApi, model: Path) -> None:
    result = run("optimize", model, "--print-between-passes")
    assert "// after find_latent_attention\ngraph [batch, 1] text\n" in result.stdout


def test_full_disk(run: Run, api: FakeApi, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from mla_opt.files import writing as model_writing

    def full(_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model_writing.os, "fsync", full)
    result = run("optimize", model)
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert result.stderr.count("\n") == 1
    assert files(model.parent) == ["m.onnx"]
