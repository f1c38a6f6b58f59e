"""Data files that a model may refer to where they are, instead of having a copy.

ONNX looks for data in the folder of the model and in those below it, and nowhere else: ONNX's
checker and ONNX Runtime refuse ``..``, absolute paths and links out of the folder. So a model can
share the files of another one only from their folder, or from one above.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mla_opt.errors import InputError


def location(path: Path, file: Path) -> str:
    """Return how the model at ``path`` refers to a data file, all links followed.

    Raises:
        InputError: it cannot.
    """
    folder, real = (Path(os.path.realpath(each)) for each in (path.parent, file))
    if not real.is_relative_to(folder):
        raise InputError(
            f"{path}: cannot share {real}: ONNX looks for data in the folder of a model and below"
            f" it only; write to {str(real.parent)!r}, or let the weights be copied"
            " (--weights-files copy)"
        )
    return real.relative_to(folder).as_posix()


def check_sharing(path: Path, files: Sequence[Path]) -> None:
    """Check that a model at ``path`` can share what the model of ``files`` keeps beside it.

    Raises:
        InputError: it cannot, or there is nothing to share.
    """
    model, *data = files
    if not data:
        raise InputError(
            f"{model}: keeps its weights inside, where no other file can refer to them; leave out"
            " --weights-files share"
        )
    for each in data:
        location(path, each)
