"""Files that came with a manifest: whole as it tells, and code only from whom the user trusts."""

from __future__ import annotations

from pathlib import Path

from mla_opt.engines.manifest import File
from mla_opt.errors import InputError, KernelUnavailableError
from mla_opt.files.model_io import sha256
from mla_opt.kernels.trust import HASHES_VARIABLE, check_private, is_known


def check_file(folder: Path, file: File) -> Path:
    """Return the path of a file.

    Raises:
        InputError: it cannot be read, or is not the one that the manifest tells of.
    """
    path = folder / file.name
    if sha256([path]) != file.sha256:
        raise InputError(f"{path}: is not the file that the manifest tells of; export it again")
    return path


def check_code(folder: Path, file: File, *, allow_host_code: bool) -> Path:
    """Return the path of a library that may be loaded.

    The manifest lies beside the library, so it vouches for nothing but its wholeness.

    Raises:
        InputError: as `check_file`; or, without ``allow_host_code``, others can write the library,
            or this user has neither built it nor named its hash.
    """
    path = check_file(folder, file)
    if allow_host_code:
        return path
    try:
        check_private(path.resolve())
    except KernelUnavailableError as error:
        raise InputError(str(error)) from error
    if not is_known(file.sha256):
        raise InputError(
            f"{path}: is code that was not built here (SHA-256 {file.sha256});"
            f" allow_host_code=True, or its hash in {HASHES_VARIABLE}, lets it run, if you trust"
            " where it comes from"
        )
    return path
