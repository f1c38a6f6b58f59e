"""The JSON Schema of a benchmark report: ``python -m mla_opt.benchmarking.schema`` writes it."""

from __future__ import annotations

from pathlib import Path

from mla_opt.benchmarking.report import BENCH_SCHEMA_VERSION, BenchReport
from mla_opt.report.schema import SchemaFile

BENCH = SchemaFile(Path(__file__).with_name("bench.schema.json"), BenchReport, BENCH_SCHEMA_VERSION)

if __name__ == "__main__":
    BENCH.write()
