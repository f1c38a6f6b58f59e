"""`examine`: look at everything, and fail at nothing that is absent."""

from __future__ import annotations

import os
import platform

from mla_opt.doctor.installed import compilers, packages
from mla_opt.doctor.libraries import libraries
from mla_opt.doctor.report import DoctorReport, Machine
from mla_opt.doctor.targets import Facts, targets
from mla_opt.engines.cuda_driver import current_device
from mla_opt.errors import InputError
from mla_opt.version import tool_version


def examine() -> DoctorReport:
    """Look at this machine and this installation."""
    machine, installed, tools = _machine(), packages(), compilers()
    kernels = libraries(machine.compute_capability)
    facts = Facts(
        machine,
        {each.name: each.version for each in installed},
        {each.name: each for each in tools},
        {each.name: each for each in kernels},
    )
    return DoctorReport(
        tool_version=tool_version(),
        python_version=platform.python_version(),
        machine=machine,
        packages=installed,
        compilers=tools,
        libraries=kernels,
        targets=targets(facts),
    )


def _machine() -> Machine:
    where = platform.system(), platform.machine(), os.cpu_count() or 1
    try:
        device = current_device()
    except (InputError, AttributeError):
        return Machine(*where, None, None)
    return Machine(*where, device.name, device.compute_capability)
