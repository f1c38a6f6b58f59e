"""What holds for all tests."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _known_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verification draws other inputs each time; a test passes or fails with the same ones.

    Commands that run in a process of their own draw fresh ones.
    """
    monkeypatch.setattr("mla_opt.verification.verifier.fresh_seed", lambda: 0)
