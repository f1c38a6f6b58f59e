"""What holds for all tests."""

from __future__ import annotations

import gc
import os

import pytest

# Tests run side by side, one a core; torch reads this when it is imported, and so do its children.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test finds that another has done its work already, and none writes to the user's cache.
os.environ["MLA_OPT_CACHE"] = ""


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of garbage collection: it was an eighth of all time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _known_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verification draws other inputs each time; a test passes or fails with the same ones.

    Commands that run in a process of their own draw fresh ones.
    """
    monkeypatch.setattr("mla_opt.verification.verifier.fresh_seed", lambda: 0)
