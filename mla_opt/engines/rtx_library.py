"""TensorRT-RTX's wheel, opened so that plugins work in it.

When a plugin is made, its parser opens ``libtensorrt_rtx.so``, and ends the process where there is
no such file. The wheel brings ``libtensorrt_rtx.so.1`` alone. The libraries look for each other in
the folder that they were opened from, so they are opened from a folder of links with both names.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

SELF = "libtensorrt_rtx.so"
#: Who opens it, in the order in which they can be opened.
LIBRARIES = ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1")
_ORIGIN = 6  # RTLD_DI_ORIGIN


@cache
def open_libraries() -> None:
    """Open the wheel's libraries under both names; a no-op without the wheel, or once imported."""
    home = _wheel()
    if home is None or "tensorrt_rtx" in sys.modules:
        return
    with suppress(OSError):  # the import that follows says why
        for name in LIBRARIES:
            ctypes.CDLL(os.fspath(_links(home) / name))


def finds_itself() -> bool:
    """Whether a plugin can be made, once TensorRT-RTX is imported."""
    try:
        ctypes.CDLL(SELF)
    except OSError:
        folders = [folder for folder in map(_origin, LIBRARIES) if folder is not None]
        return bool(folders) and all((folder / SELF).exists() for folder in folders)
    return True


def remedy() -> str:
    """What to do where it does not find itself."""
    home = _wheel()
    if home is None:
        return f"put the folder with {SELF} into LD_LIBRARY_PATH before Python starts"
    return (
        "let mla_opt import tensorrt_rtx first, or give the library that name: "
        f"ln -s {LIBRARIES[0]} {home / SELF}"
    )


def _wheel() -> Path | None:
    """The folder of the wheel's libraries."""
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if spec is None or spec.origin is None or not sys.platform.startswith("linux"):
        return None
    home = Path(spec.origin).parent
    return home if all((home / name).is_file() for name in LIBRARIES) else None


@cache
def _links(home: Path) -> Path:
    """A folder of links that lives as long as the process: the name is looked up late."""
    made = tempfile.TemporaryDirectory(prefix="mla-opt-rtx-")
    _kept.append(made)
    folder = Path(made.name)
    for name in (*LIBRARIES, SELF):
        (folder / name).symlink_to(home / (LIBRARIES[0] if name == SELF else name))
    return folder


_kept: list[tempfile.TemporaryDirectory[str]] = []


def _origin(name: str) -> Path | None:
    """The folder that a library was opened from, if it is open."""
    buffer = ctypes.create_string_buffer(4096)
    try:
        handle = ctypes.CDLL(name, mode=os.RTLD_NOW | os.RTLD_NOLOAD)._handle
        failed = ctypes.CDLL(None).dlinfo(ctypes.c_void_p(handle), _ORIGIN, buffer)
    except (OSError, AttributeError):
        return None
    return None if failed else Path(os.fsdecode(buffer.value))
