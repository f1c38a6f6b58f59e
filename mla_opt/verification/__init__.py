"""Proof that an optimized model computes what the original computes.

`verify` drives both with the same random inputs, prefill and decode, feeding each its own states,
and compares every output and every cache that both have; then breaks the optimized model on
purpose and checks that the comparison notices.
"""

from mla_opt.sites import Ends
from mla_opt.verification.by_layer import verify_by_layer
from mla_opt.verification.interface_map import InterfaceMap, StateMap
from mla_opt.verification.negative_controls import ControlResult
from mla_opt.verification.parity import OutputParity, ScenarioParity, Tolerance
from mla_opt.verification.report import ParityReport
from mla_opt.verification.scenarios import Scenario
from mla_opt.verification.site_records import SiteRecord, read_sites, sites_to_json
from mla_opt.verification.verifier import verify

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
    "verify_by_layer",
]
