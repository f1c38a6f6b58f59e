"""What has to be said of a kind of folder, so that it can be optimized."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mla_opt.folders.tree import Tree
from mla_opt.report.report import InterfaceChange, PortSpec


@dataclass(frozen=True, slots=True)
class Model:
    """The interface of one ONNX file of a folder, as it will be in the new one.

    Attributes:
        name: below the folder, with ``/``.
        inputs: by name.
        outputs: by name.
        changes: against the file that was read; none where it was left as it is.
    """

    name: str
    inputs: Mapping[str, PortSpec]
    outputs: Mapping[str, PortSpec]
    changes: tuple[InterfaceChange, ...] = ()

    @property
    def renamed(self) -> tuple[str, ...]:
        """Names of inputs and outputs that came or went."""
        ports = ((change.before, change.after) for change in self.changes)
        return tuple(
            (before or after).name  # type: ignore[union-attr]  # one of them is there
            for before, after in ports
            if before is None or after is None
        )


Configs = Mapping[str, Mapping[str, Any]]
"""Configs as they have to be, by name below the folder."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to keep a model in a folder, and the program that opens it.

    Attributes:
        name: the program, as people call it.
        opened: names of the ONNX files that the program opens; ``None`` where a folder is not of
            this kind. Raises `InputError` where it is one, and cannot be used.
        configs: the configs that have to change, given every ONNX file that could be read. Raises
            `RefusedError` where no config can describe the new interface to the program.
    """

    name: str
    opened: Callable[[Tree], tuple[str, ...] | None]
    configs: Callable[[Tree, Sequence[Model]], Configs]
