"""What caches of fewer bits do to text that a model has learnt to predict."""

from __future__ import annotations

import pytest

from tests.quantization.trained import STEPS, Reading, readings, table

#: Most that a type may take the logits away, relative to their spread, and the loss, in nats.
MOST = {
    "float16": (1e-3, 1e-4),
    "bfloat16": (1e-2, 1e-3),
    "int8": (2e-2, 2e-3),
    "fp8": (6e-2, 1e-2),
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
    assert found["float32"].loss < 2.2
    check(found, agreement=0.97)
