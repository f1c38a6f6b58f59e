"""From a model to a bundle: buffers for its caches, verify, and write all that it takes to run it.

Everything that can be found wrong without the model is found wrong first; the folder appears whole
or not at all.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from mla_opt import api, metadata
from mla_opt.bundles.description import ROWS, Description, describe
from mla_opt.bundles.header import header_text
from mla_opt.bundles.manifest import BundleManifest, Library
from mla_opt.bundles.readme import readme_text
from mla_opt.engines.export import check_folder
from mla_opt.engines.manifest import MANIFEST, File
from mla_opt.errors import (
    CACHE_NOT_RECOGNIZED,
    InputError,
    KernelUnavailableError,
    RefusedError,
)
from mla_opt.events import Observer
from mla_opt.files.model_io import (
    check_input,
    check_parent,
    check_replaced,
    model_files,
    read_model,
    sha256,
    write_model,
)
from mla_opt.folders.output import OutputFolder
from mla_opt.kernels.library import kernel_library
from mla_opt.kernels.trust import remember
from mla_opt.operator.contract import DOMAIN
from mla_opt.options import CacheType
from mla_opt.programs.recognize import is_program_file
from mla_opt.version import tool_version

MODEL, HEADER, README, SUMS = "model.onnx", "model.h", "README.md", "SHA256SUMS"
LOADERS = ("generate.py", "generate.cpp")
_LOADERS = Path(__file__).with_name("loaders")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BundleOptions:
    """How to make a bundle.

    Attributes:
        rows: of each cache, prompt and answer together; 4096, or what the model has, if not given.
        cache_type: what the rows of a float32 model's caches are rounded to.
        verify: run the result against the model.
        force: replace an export that is there.
    """

    rows: int | None = None
    cache_type: CacheType = "keep"
    verify: bool = True
    force: bool = False


@dataclass(frozen=True, slots=True)
class _Made:
    """A model with buffers, and whether it was compared with the one that it was made of."""

    model: ir.Model
    description: Description
    verified: bool


def export_bundle(
    source: Path,
    folder: Path,
    options: BundleOptions | None = None,
    *,
    say: Say | None = None,
    observer: Observer | None = None,
) -> BundleManifest:
    """Write the bundle of a model.

    A model that mla-opt has optimized is taken as it is, if its caches are buffers.

    Raises:
        InputError: something is not there or does not fit, or the loaders cannot run the model.
        NothingMatchedError: the model has no latent attention.
        RefusedError: a cache of latent attention cannot become a buffer.
        VerificationError: the model with buffers computes something else.
    """
    options, tell = options or BundleOptions(), say or (lambda text: None)
    _check_source(source)
    _check_target(folder, options.force)
    tell(f"reading {source}")
    model = read_model(source)
    inputs = model_files(source, model)
    check_replaced(folder, inputs)
    if metadata.by_whom(model.metadata_props) is None:
        made = _optimized(source, model, options, observer)
    else:
        made = _as_it_is(source, model, options)
    library = _library(source, made.model)
    with OutputFolder(folder) as out, out.errors():
        tell(f"writing {folder}")
        files = write_model(made.model, out.path(MODEL))
        shipped = None if library is None else _shipped(out, library)
        tell(f"hashing {source}")
        manifest = _manifest(made, files, shipped, sha256(inputs))
        manifest = replace(manifest, others=_write_texts(out, manifest))
        _write_manifest(out, manifest)
        out.commit()
    if library is not None:
        remember(library)
    return manifest


def _check_source(source: Path) -> None:
    if is_program_file(source):
        raise InputError(
            f"{source}: is a PyTorch program, and a bundle for ONNX Runtime is made of an ONNX file"
        )
    check_input(source)


def _check_target(folder: Path, force: bool) -> None:
    """Find out before the work that the folder cannot be written."""
    if folder.is_symlink():
        raise InputError(f"{folder}: is a link; give the folder itself, or another one")
    check_folder(folder, force)
    check_parent(folder.absolute())


def _optimized(
    source: Path, model: ir.Model, options: BundleOptions, observer: Observer | None
) -> _Made:
    try:
        result = api.optimize(
            model,
            cache=f"static:{options.rows or ROWS}",
            cache_type=options.cache_type,
            matmul_nbits="kernel",  # which comes along, and else ONNX Runtime's operator runs
            verify=options.verify,
            observer=observer,
        )
    except RefusedError as error:
        raise RefusedError(_why_no_buffers(source, error), error.report) from error
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    return _Made(result.model, describe(result.model, str(source)), options.verify)


def _why_no_buffers(source: Path, error: RefusedError) -> str:
    refusals = () if error.report is None else error.report.refusals
    lost = [each for each in refusals if each.code == CACHE_NOT_RECOGNIZED]
    reason = f"{lost[0].site}: {lost[0].reason}" if lost else str(error)
    return (
        f"{source}: a bundle keeps all caches in buffers, and some of these cannot be: {reason};"
        " `mla-opt optimize` writes a model that keeps them as they are"
    )


def _as_it_is(source: Path, model: ir.Model, options: BundleOptions) -> _Made:
    if options.cache_type != "keep":
        raise InputError(
            f"{source}: is optimized already, and is taken as it is: leave the type of the caches"
            f" ({options.cache_type}) out, or give the model as it was exported"
        )
    return _Made(model, describe(model, str(source), options.rows), verified=False)


def _library(source: Path, model: ir.Model) -> Path | None:
    """The library with the kernels of the model's operators, if it has any."""
    if not any(node.domain == DOMAIN for node in model.graph.all_nodes()):
        return None
    try:
        return kernel_library()
    except KernelUnavailableError as error:
        raise InputError(
            f"{source}: the bundle brings the kernels of its operators, and {error}; or give a"
            " model with standard operators only (`mla-opt optimize --target portable --cache"
            " static:ROWS`), which is slower"
        ) from error


def _shipped(out: OutputFolder, library: Path) -> Library:
    """Put the library into the folder."""
    out.copy(library.name, library)
    return Library(_file(out.path(library.name)), platform.system(), platform.machine())


def _manifest(
    made: _Made, files: Iterable[Path], library: Library | None, source_sha256: str
) -> BundleManifest:
    """All but the files that are written from it."""
    description = made.description
    return BundleManifest(
        kind="onnxruntime",
        source_sha256=source_sha256,
        rows=description.rows,
        most_new=description.most_new,
        vocabulary=description.vocabulary,
        inputs=description.inputs,
        logits=description.logits,
        caches=description.caches,
        layers=description.layers,
        model=tuple(map(_file, files)),
        library=library,
        others=(),
        onnxruntime_version=ort.__version__,
        verified=made.verified,
        tool_version=tool_version(),
    )


def _write_texts(out: OutputFolder, manifest: BundleManifest) -> tuple[File, ...]:
    """Write the loaders, and what the one in C++ and people read."""
    texts = {name: (_LOADERS / name).read_text(encoding="utf-8") for name in LOADERS}
    texts |= {HEADER: header_text(manifest), README: readme_text(manifest)}
    for name, text in texts.items():
        out.write(name, text.encode())
    return tuple(_file(out.path(name)) for name in texts)


def _write_manifest(out: OutputFolder, manifest: BundleManifest) -> None:
    """Write it, and the hashes of all files as ``sha256sum`` reads them."""
    out.write(MANIFEST, manifest.to_json().encode())
    library = () if manifest.library is None else (manifest.library.file,)
    files = (*manifest.model, *library, *manifest.others, _file(out.path(MANIFEST)))
    out.write(SUMS, "".join(f"{each.sha256}  {each.name}\n" for each in files).encode())


def _file(path: Path) -> File:
    return File(path.name, sha256([path]), path.stat().st_size)
