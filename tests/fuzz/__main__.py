"""Fuzz the whole of `optimize`, from the file to the written result.

::

    pip install atheris                        # guides the mutations by what code they reach
    python -m tests.fuzz FOLDER -max_total_time=3600

Every input that ends in another way than a result or a refusal is kept in FOLDER/findings, under
the name of what happened, and the run goes on. At the end, and every minute, a table is printed.
Options with one dash are libFuzzer's. Without atheris the mutations are drawn blindly.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.util
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GUIDED = importlib.util.find_spec("atheris") is not None
if GUIDED:
    import atheris

    with atheris.instrument_imports(include=["mla_opt"]):
        import mla_opt.api
        import mla_opt.files.model_io  # noqa: F401

import onnx  # noqa: E402

from mla_opt import api  # noqa: E402
from mla_opt.errors import InputError, NothingMatchedError, VerificationError  # noqa: E402
from mla_opt.files.model_io import write_model  # noqa: E402
from tests.files.damages import ANSWERED, TAKEN  # noqa: E402
from tests.fuzz.mutations import mutate  # noqa: E402
from tests.graphs.latent_block import Block, build  # noqa: E402

UNKNOWABLE = "the original is NaN or infinite throughout"
"""An output of which verification can say nothing, and says so."""

SECONDS = 30
"""An input that takes longer is a finding."""

BLOCKS: tuple[dict[str, Any], ...] = (
    {}, {"cache": "expanded"}, {"cache": "packed"}, {"cache": "none"},
    {"core": "fused", "opset": 23},
    {"bias": "boolean"}, {"bias": "computed"}, {"sink": True}, {"keys": "scatter"},
    {"storage": "gemm"}, {"storage": "dequantized"}, {"layers": 2, "share": True},
    {"guarded": True}, {"dtype": "float16"}, {"q_lora": None},
)  # fmt: skip

table: Counter[str] = Counter()
_last_told = time.monotonic()


class TooLongError(Exception):
    """An input took more than `SECONDS`."""


def seeds() -> Iterator[bytes]:
    """Small models that the mutations begin with."""
    for changes in BLOCKS:
        yield build(Block(**changes)).SerializeToString()
    for damage in (*ANSWERED.values(), *TAKEN.values()):
        model = build(Block())
        damage(model)
        if model.ByteSize() < 100_000:
            yield model.SerializeToString()


def mutated(data: bytes, max_size: int, seed: int) -> bytes:
    """Another message; once in a while other bytes."""
    draw = random.Random(seed)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:
        model = build(Block())
    try:
        mutate(model, draw)
    except (ValueError, TypeError, UnicodeDecodeError):
        return data  # protobuf does not take such a number there
    content = bytearray(model.SerializeToString())
    if draw.random() < 0.05 and content:
        content[draw.randrange(len(content))] = draw.randrange(256)
    return bytes(content) if len(content) <= max_size else data


def try_one(data: bytes, folder: Path) -> str:
    """Optimize one file; returns how it ended."""
    path = folder / "model.onnx"
    path.write_bytes(data)
    verified = hashlib.sha256(data).digest()[0] < 16  # one in sixteen: it takes longest
    try:
        result = api.optimize(path, verify=verified)
        write_model(result.model, folder / "out.onnx", force=True)
    except InputError:
        return "refused: the input cannot be used"
    except NothingMatchedError:
        return "refused: nothing is latent"
    except VerificationError as error:
        if UNKNOWABLE in str(error):
            return "refused: what the original makes is no number"
        return "finding: verification failed"
    except MemoryError:
        return "refused: out of memory"
    except TooLongError:
        return "finding: too long"
    except Exception as error:
        return f"finding: {type(error).__name__} {_where(error)}"
    return "optimized, verified" if verified else "optimized"


def _where(error: BaseException) -> str:
    """Where in our code it happened, behind all that wraps it."""
    while error.__cause__ is not None:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "mla_opt" in frame.filename] or frames
    return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"


def one_input(data: bytes) -> None:
    """Try one input within the time, note how it ended, and keep it where it is a finding."""
    signal.alarm(SECONDS)
    try:
        ended = try_one(data, WORK)
    except TooLongError:
        ended = "finding: too long"
    finally:
        signal.alarm(0)
    table[ended] += 1
    if ended.startswith("finding") and table[ended] <= 3:
        name = "".join(c if c.isalnum() else "_" for c in ended.removeprefix("finding: "))
        digest = hashlib.sha256(data).hexdigest()[:8]
        (FINDINGS / f"{name}-{digest}.onnx").write_bytes(data)
    _tell()


def _tell(*, now: bool = False) -> None:
    global _last_told
    if now or time.monotonic() - _last_told > 60:
        _last_told = time.monotonic()
        rows = "\n".join(f"{count:8d}  {ended}" for ended, count in table.most_common())
        print(f"{sum(table.values()):8d}  inputs\n{rows}\n", flush=True)


def _too_long(number: int, frame: object) -> None:
    del number, frame
    raise TooLongError


def blindly(seconds: float) -> None:
    """Mutate without guidance."""
    pool, draw, end = list(seeds()), random.Random(), time.monotonic() + seconds
    while time.monotonic() < end:
        data = draw.choice(pool)
        for _ in range(draw.randrange(1, 4)):
            data = mutated(data, 1 << 20, draw.randrange(1 << 30))
        one_input(data)


def main() -> None:
    """Run; what is found is in the table."""
    corpus = WORK.parent / "corpus"
    corpus.mkdir(exist_ok=True)
    for data in seeds():
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    signal.signal(signal.SIGALRM, _too_long)
    if GUIDED:
        options = [*sys.argv[2:], "-max_len=200000", "-timeout=300", "-rss_limit_mb=6000"]
        options.append(f"-artifact_prefix={FINDINGS}/")  # what libFuzzer itself keeps
        atheris.Setup([sys.argv[0], *options, str(corpus)], one_input, custom_mutator=mutated)
        with contextlib.suppress(SystemExit):
            atheris.Fuzz()
    else:
        given = dict(option.lstrip("-").partition("=")[::2] for option in sys.argv[2:])
        blindly(float(given.get("max_total_time", "60")))
    _tell(now=True)


if __name__ == "__main__":
    HOME = Path(sys.argv[1])
    FINDINGS = HOME / "findings"
    FINDINGS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HOME) as folder:
        WORK = Path(folder)
        atexit.register(_tell, now=True)
        main()
