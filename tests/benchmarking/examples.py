"""A report of everything a report can hold."""

from __future__ import annotations

from mla_opt.benchmarking.limits import Rates
from mla_opt.benchmarking.machine import Machine
from mla_opt.benchmarking.report import (
    Agreement,
    BenchReport,
    Measurement,
    MissingPeer,
    ParticipantReport,
)

MACHINE = Machine("a CPU", 2, 8.0, "Linux", "1.32", 2, 100.0, 10.0, "a product")
SAME = Agreement("same past", 1e-6, 2e-4, "logits")
OTHER = Agreement("same past", 0.5, 2e-4, "logits")


def measurement(
    name: str, context: int, ms: float, agreement: Agreement = SAME, query: int = 1
) -> Measurement:
    return Measurement(
        participant=name,
        context=context,
        batch=1,
        query=query,
        min_ms=ms,
        median_ms=ms * 2,
        samples_ms=(ms, ms * 2, ms * 3),
        loaded_mb=100.0,
        beyond_mb=12.3,
        faster=8.0 / ms,
        faster_by_median=8.0 / ms,
        agreement=agreement,
        attention=None if context == 1024 else Rates(50.0, 1.0, 0.5, 0.1),
    )


def report(agreement: Agreement = SAME) -> BenchReport:
    none = Agreement("not", None, None)
    return BenchReport(
        original="a.onnx",
        optimized="b.onnx",
        machine=MACHINE,
        participants=(
            ParticipantReport("original", "original", "expands"),
            ParticipantReport("optimized", "optimized", "absorbs"),
            ParticipantReport("a peer", "peer", "something else"),
        ),
        measurements=tuple(
            measurement(name, context, ms, agreed, query)
            for query in (1, 8)
            for context in (1024, 8192)
            for name, ms, agreed in (
                ("original", 8.0, none),
                ("optimized", 1.0, agreement),
                ("a peer", 4.0, OTHER),
            )
        ),
        missing=(MissingPeer("another", "it cannot be imported", "pip install another"),),
        notes=("something to know",),
    )
