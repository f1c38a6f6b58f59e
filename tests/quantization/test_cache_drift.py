"""What caches of fewer bits do to text that a model has learnt to predict."""

from __future__ import annotations

import pytest

from tests.quantization.trained import STEPS, Reading, readings, table

#: Most that a type may take the logits away, relative to their spread, and the loss, in nats.
MOST = {
    "float16": (5e-4, 1e-4),
    "bfloat16": (3e-3, 2e-4),
    "int8": (4e-3, 2e-4),
    "fp8": (1e-2, 5e-4),
}


def check(found: dict[str, Reading], agreement: float) -> None:
    exact = found["float32"]
    for kind, (most_drift, most_loss) in MOST.items():
        reading = found[kind]
        assert 0 < reading.drift(exact) < most_drift, table(found)
        assert abs(reading.loss - exact.loss) < most_loss, table(found)
        assert reading.agreement(exact) > agreement, table(found)
    assert found["float16"].drift(exact) < found["int8"].drift(exact) < found["fp8"].drift(exact)


@pytest.mark.sweep
def test_a_model_that_has_learnt_for_a_minute() -> None:
    found = readings(STEPS, windows=128)
    assert found["float32"].loss < 2.5  # of 5.5 before it has seen anything
    check(found, agreement=0.985)
