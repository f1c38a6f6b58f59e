"""A run's tables come to their place in the page of what was measured; all else stays."""

from __future__ import annotations

import argparse
import datetime
import io
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from mla_opt.benchmarking.machine import Machine
from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks import record, serving
from tests.benchmarks.figures import Figure
from tests.benchmarks.record import Page, PageError, Record
from tests.benchmarks.sections import Bench
from tests.benchmarks.suite import QUICK

ROOT = Path(__file__).parents[2]
EPYC = "AMD EPYC (family 25, model 17, AVX-512), 2 cores, 23.5 GB"
ABOUT = Machine(EPYC.split(", 2")[0], 2, 23.5, "Linux 6", "1.32.0", 2, 184.2, 33.9)
XEON = "Intel Xeon (family 6, model 207, AVX-512, AMX), 2 cores, 23.5 GB"
PAGE = f"""# What was measured

What the columns mean.

## {XEON}

Others loaded it.

### 2026-11-28: decode

`python -m bench --only decode`

| ms |
|---:|
| 1 |


### 2026-11-25: memory

`python -m bench --only memory`

## {EPYC}

### 2026-11-27: prefill

By hand.
"""


def made(date: str, command: str = "python -m bench", what: str = "sweep") -> Record:
    return Record.of(what, command, "Software.", ["| ms |\n|---:|\n| 2 |\n"], date)


def inserted(machine: str, one: Record, text: str = PAGE) -> str:
    page = Page.parse(text)
    page.insert(machine, one)
    return str(page)


def headings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("## ", "### "))]


def test_a_page_is_itself() -> None:
    assert str(Page.parse(PAGE)) == PAGE


def test_benchmarks_md_is_such_a_page() -> None:
    text = (ROOT / "benchmarks.md").read_text()
    page = Page.parse(text)
    assert str(page) == text
    days = [[each.date for each in section.records] for section in page.sections]
    assert all(each == sorted(each, reverse=True) for each in [*days, [each[0] for each in days]])


def test_a_record_has_a_heading_a_command_software_and_tables() -> None:
    one = made("2026-11-29")
    assert one.text == (
        "### 2026-11-29: sweep\n\n`python -m bench`\n\nSoftware.\n\n| ms |\n|---:|\n| 2 |\n\n"
    )
    assert (one.date, one.command) == ("2026-11-29", "python -m bench")
    assert made("").date == datetime.date.today().isoformat()


def test_a_new_machine_with_the_newest_record_is_the_first() -> None:
    text = inserted("GPU", made("2026-11-29"))
    assert headings(text)[:3] == ["## GPU", "### 2026-11-29: sweep", f"## {XEON}"]
    assert text.replace(f"## GPU\n\n{made('2026-11-29').text}", "") == PAGE


def test_a_new_machine_with_an_old_record_is_the_last() -> None:
    text = inserted("GPU", made("2026-11-01"))
    assert text == f"{PAGE}\n## GPU\n\n{made('2026-11-01').text}"[:-1]


def test_a_known_machine_is_found_whatever_is_said_of_its_instructions() -> None:
    named = "AMD EPYC (family 25, model 17, AVX-512 with bfloat16 products), 2 cores, 23.5 GB"
    text = inserted(named, made("2026-11-29"))
    assert headings(text)[:3] == [
        f"## {EPYC}",
        "### 2026-11-29: sweep",
        "### 2026-11-27: prefill",
    ]


@pytest.mark.parametrize(
    ("this", "other"),
    [("model 17", "model 1"), ("model 17", "model 171"), ("2 cores", "4 cores"), ("23.5", "47.1")],
)
def test_another_machine_is_another_section(this: str, other: str) -> None:
    name = EPYC.replace(this, other)
    assert f"## {name}" in headings(inserted(name, made("2026-11-29")))


@pytest.mark.parametrize(
    ("date", "place"), [("2026-11-28", 1), ("2026-11-26", 2), ("2026-11-01", 3)]
)
def test_the_newest_record_is_first(date: str, place: int) -> None:
    text = inserted(XEON, made(date))
    assert headings(text).index(f"### {date}: sweep") == place
    assert text.replace(made(date).text, "") == PAGE


def test_the_same_command_on_the_same_day_is_replaced() -> None:
    one = made("2026-11-28", "python -m bench --only decode", "decode again")
    text = inserted(XEON, one)
    old = PAGE[PAGE.index("### 2026-11-28") : PAGE.index("### 2026-11-25")]
    assert text == PAGE.replace(old, one.text)
    assert inserted(XEON, one, text) == text


@pytest.mark.parametrize("date", ["2026-11-27", "2026-11-29"])
def test_the_same_command_on_another_day_stays(date: str) -> None:
    one = made(date, "python -m bench --only decode")
    assert inserted(XEON, one).replace(one.text, "") == PAGE


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the first line"),
        ("# Another page\n\n## Machine\n", "the first line"),
        (PAGE.replace("### 2026-11-25: ", "### "), "YYYY-MM-DD"),
        (f"{PAGE}\n## Notes\n\nWords.\n", "`## Notes` has no record"),
        (PAGE.replace(f"## {XEON}\n", ""), "before the first machine"),
    ],
)
def test_another_page_is_refused(text: str, why: str) -> None:
    with pytest.raises(PageError, match=why):
        Page.parse(text)


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    record.write(path, EPYC, made("2026-11-29"))
    assert path.read_text() == inserted(EPYC, made("2026-11-29"))
    assert [each.name for each in tmp_path.iterdir()] == ["page.md"]


def test_a_page_that_changed_meanwhile_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("# Another page\n")
    with pytest.raises(PageError):
        record.write(path, EPYC, made("2026-11-29"))
    assert path.read_text() == "# Another page\n"


@pytest.mark.parametrize("content", [None, b"# Another page\n", b"\xff"])
def test_the_option_wants_such_a_page(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "page.md"
    if content is not None:
        path.write_bytes(content)
    parser = argparse.ArgumentParser()
    record.add_option(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--record", str(path)])
    assert "is not a page of records" in capsys.readouterr().err


@pytest.mark.parametrize("program", [benchmarks, serving])
def test_a_quick_run_is_not_recorded(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.md").write_text(PAGE)
    with pytest.raises(SystemExit):
        program.main(["--quick", "--record", str(tmp_path / "page.md")])
    assert "measures too little to be recorded" in capsys.readouterr().err


def reported(path: Path, failed: list[str]) -> None:
    """The end of a run of the benchmark."""
    bench = Bench(QUICK, ABOUT, lambda line: None, failed=failed, skipped=["transformers 4.57"])
    bench.figures.append(Figure("decode: whole gain", 14.5, 13.0, 15.0))
    options = benchmarks.parse(["--only", "decode", "--only", "memory", "--record", str(path)])
    console = Console(file=io.StringIO())
    benchmarks.report(options, benchmarks.command_line(options), bench, console)


def test_the_benchmark_records_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    reported(path, [])
    text = path.read_text()
    today = datetime.date.today().isoformat()
    assert headings(text)[:2] == [f"## {EPYC}", f"### {today}: decode, memory"]
    assert "`python -m tests.benchmarks --only decode --only memory`\n" in text
    assert "\nSkipped: transformers 4.57\n" in text
    assert "| decode: whole gain | 14.5 x | 13.0 x | ≥ 15.0 x | not met |\n" in text


def test_a_run_in_which_a_part_failed_is_not_recorded(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    reported(path, ["no export"])
    assert path.read_text() == PAGE


def test_a_command_is_told_without_places() -> None:
    words = ["--layers", "4", "16", "--record", "page.md", "--folder=/disk", "--rounds", "2"]
    told = record.command_line("tests.benchmarks.scale", words, ("--folder",))
    assert told == "python -m tests.benchmarks.scale --layers 4 16 --rounds 2"


def test_a_machine_is_told_by_name_software_and_rates() -> None:
    assert record.machine_name(ABOUT) == EPYC
    assert record.conditions(ABOUT, ["pytest", "no-such-package"]) == (
        f"Linux 6; ONNX Runtime 1.32.0, pytest {pytest.__version__}; 2 threads;"
        " matmul 184 GFLOP/s, memory 34 GB/s."
    )
