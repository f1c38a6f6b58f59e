"""Read what an optimization reported: sites, proof, and what changed for the caller.

    mla-opt optimize model.onnx --report report.json
    python examples/read_report.py report.json

Without an argument it optimizes the demo model first. The fields are those of
`mla_opt.OptimizationReport`; `mla_opt/report/report.schema.json` describes them to other languages.
"""

from __future__ import annotations

import sys
from pathlib import Path

import mla_opt
from mla_opt.models import demo_model


def load(path: str | None) -> mla_opt.OptimizationReport:
    if path is None:
        return mla_opt.optimize(demo_model(), cache="packed").report
    return mla_opt.OptimizationReport.from_json(Path(path).read_text())


def show(report: mla_opt.OptimizationReport) -> None:
    for site in report.sites:
        saved = site.decode_before.bytes / site.decode_after.bytes
        print(f"{site.name}: {site.geometry}")
        print(f"    form {site.form}: {site.form_reason}")
        print(f"    {saved:.1f}x fewer bytes a decode step at {site.decode_context} tokens")
    for refusal in report.refusals:
        print(f"{refusal.site}: left as it was, {refusal.code}: {refusal.reason}")
    for change in report.interface_changes:
        before = change.before.name if change.before else "nothing"
        after = change.after.name if change.after else "nothing"
        print(f"{change.kind}: {before} -> {after} ({change.why})")
    proof = report.verification
    if proof is None:
        print("not verified")
        return
    worst = max(output["relative"] for output in proof["outputs"])
    noticed = [control["name"] for control in proof["controls"] if control["detected"]]
    print(f"verified: worst error {worst:.1e} of the spread; noticed when broken: {noticed}")


if __name__ == "__main__":
    show(load(sys.argv[1] if len(sys.argv) > 1 else None))
