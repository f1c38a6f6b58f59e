"""From a folder to a folder: optimize its ONNX files, let configs follow, copy the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from mla_opt import api
from mla_opt.background import Background
from mla_opt.errors import (
    InputError,
    NothingMatchedError,
    RefusedError,
    ReportedError,
    VerificationError,
)
from mla_opt.events import Observer
from mla_opt.files.model_io import describe, model_files, read_model, write_hashed
from mla_opt.folders.checkpoints import WEIGHTS, held
from mla_opt.folders.config import differences, read_config, to_bytes
from mla_opt.folders.data_files import DataFiles
from mla_opt.folders.kind import Configs, Model
from mla_opt.folders.kinds import recognize
from mla_opt.folders.output import OutputFolder, check_output_folder
from mla_opt.folders.result import ConfigChange, FolderFile, FolderResult
from mla_opt.folders.tree import Tree, read_tree
from mla_opt.report.interface_changes import ports
from mla_opt.report.report import ModelFile, OptimizationReport

Say = Callable[[str], None]
"""Told what is going on."""


def optimize_folder(
    folder: str | Path,
    output: str | Path,
    *,
    force: bool = False,
    allow_unmatched: bool = False,
    observer: Observer | None = None,
    say: Say | None = None,
    **options: Any,
) -> FolderResult:
    """Optimize the ONNX files of a folder, and write a folder that the same program opens.

    Folders of optimum and transformers.js, of transformers' ``ExportedModel``, of
    onnxruntime-genai, and any with one ONNX file are known by their files. Files without latent
    attention, tokenizers and the like are copied; links become files.

    Args:
        folder: what is read; nothing in it is changed.
        output: the folder to make, which appears whole or not at all.
        force: replace ``output`` if it is there and holds an ONNX model.
        allow_unmatched: write the folder even if nothing in it matched.
        observer: told of every pass and every verification run.
        say: told which file is worked on.
        options: those of `optimize`, for every file.

    Raises:
        InputError: the folder, one of the files that its program opens, or an option cannot be
            used; or the output cannot be written.
        NothingMatchedError: no file has latent attention.
        RefusedError: the program that opens the folder could not use the new caches.
        VerificationError: an optimized file computes something else; carries its report.
    """
    folder, output = Path(folder), Path(output)
    tell = say or (lambda text: None)
    if options.get("target") == "onnxruntime-paged":
        raise InputError(
            "target onnxruntime-paged is not for folders, whose programs feed padded tokens and"
            " caches that grow; optimize the file"
        )
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; give one, or optimize the file by `optimize`")
    tree = read_tree(folder)
    kind, opened = recognize(tree)
    check_output_folder(output, tree, force=force)
    with OutputFolder(output) as target:
        check_output_folder(output, tree, force=force)  # another run may have made it meanwhile
        work = _Work(tree, DataFiles.of(tree), target, options, observer, tell)
        files = work.all_files(opened)
        if not allow_unmatched:
            _check_matched(tree, files)
        configs = kind.configs(tree, work.models)
        carried = work.carry({file.name for file in files if file.left is None}, configs)
        target.commit()
    changes = _changes(tree, configs)
    return FolderResult(kind.name, output, files, changes, carried, _notes(tree, changes))


@dataclass
class _Work:
    """One folder under way.

    Attributes:
        models: the interfaces of the files that could be read, as they will be.
        written: names of the data files that were written.
    """

    tree: Tree
    data: DataFiles
    target: OutputFolder
    options: dict[str, Any]
    observer: Observer | None
    tell: Say
    models: list[Model] = field(default_factory=list)
    written: set[str] = field(default_factory=set)

    def all_files(self, opened: Sequence[str]) -> tuple[FolderFile, ...]:
        """Optimize every ONNX file, those that the program opens first."""
        others = [name for name in self.tree.models() if name not in opened]
        return (*(self._file(name) for name in opened), *(self._other(name) for name in others))

    def _other(self, name: str) -> FolderFile:
        """A file of which nobody says that it has to be read."""
        try:
            result = self._optimized(name)
        except InputError as error:
            return FolderFile(name, None, str(error))
        return self._written(name, result)

    def _file(self, name: str) -> FolderFile:
        """A file that has to be read."""
        return self._written(name, self._optimized(name))

    def _optimized(self, name: str) -> api.OptimizeResult | FolderFile:
        """Optimize one file; where it has no latent attention, say so."""
        path = self.tree.path(name)
        self.tell(f"reading {path}")
        model = read_model(path)
        source = Background(lambda: describe(model_files(path, model), model))
        try:
            result = api.optimize(model, observer=self.observer, **self.options)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except (RefusedError, VerificationError) as error:
            raise type(error)(f"{path}: {error}", _complete(error, source.result())) from error
        except NothingMatchedError as error:
            self.models.append(_model(name, model))
            return FolderFile(name, _complete(error, source.result()), str(error))
        self.models.append(_model(name, result.model, result.report))
        return replace(result, report=replace(result.report, input=source.result()))

    def _written(self, name: str, result: api.OptimizeResult | FolderFile) -> FolderFile:
        """Write what became of a file, if anything did."""
        if isinstance(result, FolderFile):
            return result
        self.tell(f"writing {self.target.final(name)}")
        output = self._write(name, result.model)
        return FolderFile(name, replace(result.report, output=output))

    def _write(self, name: str, model: ir.Model) -> ModelFile:
        data = self.data.place(self.tree, name)
        with self.target.errors():
            written = write_hashed(model, self.target.path(name), data=self.target.path(data))
        if len(written.files) > 1:
            self.written.add(data)
        described = describe(written.files, model, written.sha256)
        return replace(described, path=str(self.target.final(name)))

    def carry(self, replaced: Collection[str], configs: Configs) -> tuple[str, ...]:
        """Write the configs, and copy what was not written anew."""
        self.tell("copying the other files")
        for name, config in configs.items():
            self.target.write(name, to_bytes(config))
        gone = {*replaced, *configs, *self.written, *self.data.needless(replaced)}
        carried = tuple(name for name in self.tree.files if name not in gone)
        for name in carried:
            self.target.copy(name, self.tree.files[name])
        return carried


def _model(name: str, model: ir.Model, report: OptimizationReport | None = None) -> Model:
    graph, changes = model.graph, () if report is None else report.interface_changes
    return Model(name, ports(graph.inputs), ports(graph.outputs), changes)


def _complete(error: ReportedError, source: ModelFile) -> OptimizationReport | None:
    """The report of an outcome that is no success, with the file that it is about."""
    report = error.report
    return replace(report, input=source) if isinstance(report, OptimizationReport) else None


def _check_matched(tree: Tree, files: Sequence[FolderFile]) -> None:
    """Raise `NothingMatchedError` where no file was optimized."""
    if any(file.left is None for file in files):
        return
    why = "; ".join(f"{file.name}: {file.left}" for file in files[:3])
    more = f"; and {len(files) - 3} more" if len(files) > 3 else ""
    raise NothingMatchedError(
        f"{tree.folder}: no ONNX file has latent attention: {why}{more}", files[0].report
    )


def _changes(tree: Tree, configs: Configs) -> tuple[ConfigChange, ...]:
    return tuple(
        change
        for name, config in configs.items()
        for change in differences(name, read_config(tree, name), config)
    )


def _notes(tree: Tree, changes: Sequence[ConfigChange]) -> tuple[str, ...]:
    weights = held(tree, WEIGHTS)
    if not changes or not weights:
        return ()
    return (
        f"{changes[0].name} describes the ONNX files now, and no longer the weights in"
        f" {weights[0]}; load those from the folder that was read",
    )
