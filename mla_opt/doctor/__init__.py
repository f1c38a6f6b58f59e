"""What is installed here, which kernels run, and which targets are ready.

Versions are read from the metadata of packages, so that none of them is imported.
"""

from __future__ import annotations

from mla_opt.doctor.examination import examine
from mla_opt.doctor.report import DoctorReport

__all__ = ["DoctorReport", "examine"]
