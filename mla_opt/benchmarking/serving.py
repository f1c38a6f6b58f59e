"""The far end of a `WorkerProcess`: answers requests until standard input ends.

Each line in is a JSON object `{"do": METHOD, ...}`, each line out what that method returned, or
`{"error": ..., "kind": ...}` with the name of the exception's class.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

#: Characters of an error message that are passed on.
LONGEST = 600


def serve(start: Callable[[], object]) -> None:
    """Make the worker with `start`, say so, and call its methods as asked.

    What libraries print on standard output goes to standard error, so that it disturbs no answer.
    """
    with os.fdopen(os.dup(1), "w") as channel:
        os.dup2(2, 1)
        try:
            worker = start()
        except Exception as error:
            _tell(channel, _failure(error))
            return
        _tell(channel, {"ready": True})
        for line in sys.stdin:
            _tell(channel, _answer(worker, json.loads(line)))


def _answer(worker: object, request: dict[str, Any]) -> Any:
    try:
        return getattr(worker, request.pop("do"))(**request)
    except Exception as error:
        return _failure(error)


def _failure(error: Exception) -> dict[str, str]:
    return {"error": str(error)[:LONGEST], "kind": type(error).__name__}


def _tell(channel: TextIO, answer: Any) -> None:
    print(json.dumps(answer), file=channel, flush=True)
