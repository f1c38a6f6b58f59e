"""OpenVINO computes every portable form as ONNX Runtime does the original."""

from __future__ import annotations

import pytest

from tests.end_to_end.test_openvino import openvino_run
from tests.runtimes_matrix.forms import CALLS, FORMS, Case

pytest.importorskip("openvino")

#: What differs between forms, each with one of the masks and opsets; the rest is the sweep's.
FAST = (
    Case("boolean-17", "expanded"),
    Case("additive-20", "auto"),
    Case("boolean-24", "static"),
    Case("shared cache", "packed"),
)
EVERY = [
    case
    for block in ("boolean-17", "additive-20", "boolean-24", "shared cache")
    for form in FORMS
    if (case := Case(block, form)) not in FAST
]


def check(case: Case) -> None:
    run = openvino_run(case.model().SerializeToString())
    for sizes in CALLS:
        case.check(sizes, run(case.feeds(sizes)))


@pytest.mark.parametrize("case", FAST, ids=lambda case: case.id)
def test_a_portable_form(case: Case) -> None:
    check(case)


@pytest.mark.other_runtimes
@pytest.mark.parametrize("case", EVERY, ids=lambda case: case.id)
def test_every_portable_form(case: Case) -> None:
    check(case)
