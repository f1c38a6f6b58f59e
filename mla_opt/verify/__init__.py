"""Proof that an optimized model computes what the original computes.

`verify` drives both with the same random inputs, prefill and decode, feeding each its own states,
and compares every output and every cache that both have; then breaks the optimized model on
purpose and checks that the comparison notices.
"""

from mla_opt.verify.interface_map import Ends, InterfaceMap, StateMap
from mla_opt.verify.negative_controls import ControlResult
from mla_opt.verify.parity import OutputParity, ScenarioParity, Tolerance
from mla_opt.verify.report import ParityReport
from mla_opt.verify.scenarios import Scenario
from mla_opt.verify.site_records import SiteRecord, read_sites, sites_to_json
from mla_opt.verify.verifier import verify

__all__ = [
    "ControlResult",
    "Ends",
    "InterfaceMap",
    "OutputParity",
    "ParityReport",
    "Scenario",
    "ScenarioParity",
    "SiteRecord",
    "StateMap",
    "Tolerance",
    "read_sites",
    "sites_to_json",
    "verify",
]
