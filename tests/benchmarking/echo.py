"""A worker to talk to: it answers, fails, or ends, as asked."""

from __future__ import annotations

import os
import sys

from mla_opt.benchmarking.serving import serve


class Echo:
    """Says what it is told."""

    def __init__(self, word: str) -> None:
        if word == "refuse":
            raise ValueError("not this word")
        self.word = word

    def say(self, times: int) -> dict[str, str]:
        print("a library that talks on standard output")
        return {"said": self.word * times}

    def fail(self) -> dict[str, str]:
        raise KeyError("missing")

    def end(self) -> None:
        print("last words", file=sys.stderr, flush=True)
        os._exit(7)


if __name__ == "__main__":
    serve(lambda: Echo(sys.argv[1]))
