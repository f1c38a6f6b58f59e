"""`load_bundle`: a folder of `mla-opt export --to onnxruntime`, checked against its manifest."""

from __future__ import annotations

import platform
from pathlib import Path

import onnxruntime as ort

from mla_opt.bundles.manifest import BundleManifest, Library, read_bundle
from mla_opt.errors import InputError
from mla_opt.runtimes.onnxruntime.sessions import session_with_library
from mla_opt.runtimes.shipped import check_code, check_file


def load_bundle(
    folder: Path, *, allow_host_code: bool = False
) -> tuple[BundleManifest, ort.InferenceSession]:
    """Open the model of a bundle with the library that lies beside it.

    Raises:
        InputError: a file is missing or damaged, or the library is for another machine, or is not
            trusted and ``allow_host_code`` does not let it run.
    """
    manifest = read_bundle(folder)
    library = _library(folder, manifest.library, allow_host_code)
    path, *_ = (check_file(folder, each) for each in manifest.model)
    return manifest, session_with_library(path, library)


def _library(folder: Path, library: Library | None, allow_host_code: bool) -> Path | None:
    if library is None:
        return None
    here = (platform.system(), platform.machine())
    if here != (library.system, library.machine):
        raise InputError(
            f"{folder}: its library is for {library.system} {library.machine}, and this is"
            f" {' '.join(here)}; export the model again here"
        )
    return check_code(folder, library.file, allow_host_code=allow_host_code)
