"""The JSON Schema of `mla-opt doctor --json`: ``python -m mla_opt.doctor.schema`` writes it."""

from __future__ import annotations

from pathlib import Path

from mla_opt.doctor.report import DOCTOR_SCHEMA_VERSION, DoctorReport
from mla_opt.report.schema import SchemaFile

DOCTOR = SchemaFile(
    Path(__file__).with_name("doctor.schema.json"), DoctorReport, DOCTOR_SCHEMA_VERSION
)

if __name__ == "__main__":
    DOCTOR.write()
