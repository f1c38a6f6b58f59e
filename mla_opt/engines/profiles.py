"""The sizes that an engine is built for, as TensorRT's optimization profiles.

| range | counts | prefill | decode |
|---|---|---|---|
| ``batch`` | B, sequences | x | x |
| ``prompt`` | S, tokens of a prompt | x | |
| ``step`` | S, new tokens of a decode call | | x |
| ``context`` | T, tokens in sight, the new ones included | | x |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.option_text import parse_count
from mla_opt.options import Phase
from mla_opt.verification.interface_map import InterfaceMap
from mla_opt.verification.oracle import Driver, optimized_driver

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""The least, the usual and the greatest shape of one input."""


@dataclass(frozen=True, slots=True)
class Range:
    """The least, the usual and the greatest number of something."""

    least: int
    usual: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.usual <= self.most:
            raise InputError(f"{self}: must begin at 1 or above, and must not fall")

    def __str__(self) -> str:
        return f"{self.least},{self.usual},{self.most}"

    @classmethod
    def parse(cls, text: str) -> Range:
        """Read ``MOST``, ``USUAL,MOST`` or ``LEAST,USUAL,MOST``; ``k`` stands for 1024.

        Raises:
            InputError: it is something else.
        """
        shape = f"{text!r} is not MOST, USUAL,MOST or LEAST,USUAL,MOST"
        try:
            numbers = [parse_count(part.strip(), 0) for part in text.split(",")]
        except InputError as error:
            raise InputError(f"{shape}: {error}") from error
        if len(numbers) > 3:
            raise InputError(shape)
        least = numbers[0] if len(numbers) == 3 else 1
        return cls(least, numbers[-2] if len(numbers) > 1 else numbers[-1], numbers[-1])


@dataclass(frozen=True, slots=True)
class Ranges:
    """All ranges of an export; ``rows`` is the capacity M of its caches."""

    rows: int
    batch: Range
    prompt: Range
    step: Range
    context: Range

    def __post_init__(self) -> None:
        if self.context.most != self.rows:
            raise InputError(
                f"the context goes up to {self.context.most} tokens, and the caches have"
                f" {self.rows} rows; they must be equal, or rows are kept that nothing can use, or"
                " used that are not there"
            )
        for name, each in (("prompt", self.prompt), ("step", self.step)):
            if each.most > self.rows:
                raise InputError(
                    f"a {name} of {each.most} tokens does not fit in a cache of {self.rows} rows"
                )

    def profile(self, model: ir.Model, phase: Phase) -> Mapping[str, Shapes]:
        """Shapes of every input of the model, by name.

        Raises:
            InputError: the model fixes a size that the ranges leave open, or has an input whose
                size follows from none of them.
        """
        changes = InterfaceMap.of(model)
        driver = optimized_driver(model, changes)
        points = [self._shapes(driver, *sizes) for sizes in self._sizes(phase)]
        names = [port.name for port in driver.interface.inputs]
        return {name: (points[0][name], points[1][name], points[2][name]) for name in names}

    def _sizes(self, phase: Phase) -> list[tuple[int, int, int]]:
        """B, S and P of the three points."""
        batch = (self.batch.least, self.batch.usual, self.batch.most)
        if phase == "prefill":
            lengths = (self.prompt.least, self.prompt.usual, self.prompt.most)
            return [(b, s, 0) for b, s in zip(batch, lengths)]
        steps = (self.step.least, self.step.usual, self.step.most)
        seen = (self.context.least, self.context.usual, self.context.most)
        return [(b, s, max(t, s) - s) for b, s, t in zip(batch, steps, seen)]

    def _shapes(
        self, driver: Driver, batch: int, query_len: int, past_len: int
    ) -> dict[str, tuple[int, ...]]:
        shapes = driver.interface.bind(batch, query_len, past_len, self.rows)
        if driver.past_len_input is not None:
            shapes[driver.past_len_input] = (batch,)
        return shapes
