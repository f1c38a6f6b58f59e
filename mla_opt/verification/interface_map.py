"""How the caches of an optimized model stand for those of the original.

The optimized model carries the map in its metadata under ``mla_opt.interface``. No entry means
that both interfaces are the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast, get_args

import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.graphs.interface.interface import ModelInterface, Port
from mla_opt.sites import Ends
from mla_opt.verification.json_fields import Fields, parse

METADATA_KEY = "mla_opt.interface"
VERSION = 1

MappedLayout = Literal["split", "packed", "static", "even", "paged"]


@dataclass(frozen=True, slots=True)
class DroppedInput:
    """An input of the original that a model over packed tokens has no use for, such as its mask.

    ``dtype`` is ONNX's name, ``sizes`` are as the original declares them.
    """

    name: str
    dtype: str
    sizes: tuple[int | str | None, ...]

    def as_dict(self) -> dict[str, object]:
        """Return the fields for JSON."""
        return {"name": self.name, "dtype": self.dtype, "sizes": list(self.sizes)}

    @classmethod
    def of(cls, fields: Fields) -> DroppedInput:
        """Read one entry."""
        dtype = fields.text("dtype")
        if dtype not in ir.DataType.__members__:
            raise InputError(f"{fields.where}.dtype {dtype!r} is no element type of ONNX")
        return cls(fields.text("name"), dtype, fields.sizes("sizes"))


@dataclass(frozen=True, slots=True)
class StateMap:
    """The cache of one layer, before and after.

    ``reordered`` says that the original has the numbers of a row in another order.
    """

    layer: str
    original: Ends
    optimized: Ends
    layout: MappedLayout
    kv_lora_rank: int
    qk_rope_head_dim: int
    num_heads: int
    reordered: bool = False

    def as_dict(self) -> dict[str, object]:
        """Return the fields for JSON."""
        content: dict[str, object] = {
            "layer": self.layer,
            "original": self.original.as_dict(),
            "optimized": self.optimized.as_dict(),
            "layout": self.layout,
            "kv_lora_rank": self.kv_lora_rank,
            "qk_rope_head_dim": self.qk_rope_head_dim,
            "num_heads": self.num_heads,
        }
        if self.reordered:
            content["reordered"] = True
        return content

    @property
    def first_width(self) -> int:
        """Numbers of a row in the first of two tensors of the optimized model."""
        if self.layout != "even":
            return self.kv_lora_rank
        return (self.kv_lora_rank + self.qk_rope_head_dim) // 2

    @classmethod
    def of(cls, fields: Fields) -> StateMap:
        """Read one entry."""
        layout = fields.text("layout")
        if layout not in get_args(MappedLayout):
            known = ", ".join(get_args(MappedLayout))
            raise InputError(f"{fields.where}.layout {layout!r} is none of {known}")
        return cls(
            layer=fields.text("layer"),
            original=_ends(fields.inner("original")),
            optimized=_ends(fields.inner("optimized")),
            layout=cast(MappedLayout, layout),
            kv_lora_rank=fields.count("kv_lora_rank", 1),
            qk_rope_head_dim=fields.count("qk_rope_head_dim"),
            num_heads=fields.count("num_heads", 1),
            reordered=fields.flag("reordered"),
        )


@dataclass(frozen=True, slots=True)
class InterfaceMap:
    """Every cache that changed; the inputs and outputs it does not name are the same in both.

    Attributes:
        past_len_input: the input that says how many rows of the buffers are past, ``[B]`` int32;
            ``None`` where nothing is one, or inputs of the model's own say it.
        capacity: rows of the buffers; ``None`` where the model leaves it open.
        prompts_only: whether the model takes no past: its buffers are written from row 0 on.
        dropped: inputs of the original that are gone, of a model over packed tokens.
    """

    states: tuple[StateMap, ...] = ()
    past_len_input: str | None = None
    capacity: int | None = None
    prompts_only: bool = False
    dropped: tuple[DroppedInput, ...] = ()

    @classmethod
    def of(cls, model: ir.Model) -> InterfaceMap:
        """Read the map of ``model``. Raises `InputError` where it is not what it should be."""
        text = model.metadata_props.get(METADATA_KEY)
        return cls() if text is None else cls.from_json(text)

    @classmethod
    def from_json(cls, text: str) -> InterfaceMap:
        """Read a map. Raises `InputError` naming the field that is wrong."""
        fields = Fields.of(parse(text, METADATA_KEY), METADATA_KEY)
        version = fields.count("version")
        if version != VERSION:
            raise InputError(f"{METADATA_KEY} has version {version}; this release reads {VERSION}")
        result = cls(
            states=tuple(StateMap.of(entry) for entry in fields.objects("states")),
            past_len_input=fields.optional_text("past_len_input"),
            capacity=fields.optional_count("capacity", 1),
            prompts_only=fields.flag("prompts_only"),
            dropped=tuple(DroppedInput.of(each) for each in fields.optional_objects("dropped")),
        )
        result._check()
        return result

    def to_json(self) -> str:
        """Return the map as JSON that `from_json` reads."""
        states = [state.as_dict() for state in self.states]
        content = {"version": VERSION, "states": states}
        content |= {"past_len_input": self.past_len_input, "capacity": self.capacity}
        if self.prompts_only:
            content["prompts_only"] = True
        if self.dropped:
            content["dropped"] = [each.as_dict() for each in self.dropped]
        return json.dumps(content, sort_keys=True)

    @property
    def is_paged(self) -> bool:
        """Whether caches are blocks, and the tokens of all sequences come packed."""
        return any(state.layout == "paged" for state in self.states)

    @property
    def has_buffers(self) -> bool:
        """Whether any cache is a buffer that is updated in place."""
        return any(state.layout == "static" for state in self.states)

    def _check(self) -> None:
        if self.past_len_input is not None and not self.has_buffers:
            raise InputError(f"{METADATA_KEY} names past_len_input, but no layout is static")
        if self.dropped and not self.is_paged:
            raise InputError(f"{METADATA_KEY} drops inputs, but no layout is paged")
        if self.is_paged and any(state.layout != "paged" for state in self.states):
            raise InputError(f"{METADATA_KEY} has some layouts that are paged, and others")
        for side in ("original", "optimized"):
            ends: list[Ends] = [getattr(state, side) for state in self.states]
            _distinct([n for e in ends for n in e.inputs], side)
            _distinct([n for e in ends for n in e.outputs], side)


def _ends(fields: Fields) -> Ends:
    """Read both lists, which must be equally long."""
    ends = Ends(fields.texts("inputs"), fields.texts("outputs"))
    if not ends.inputs or len(ends.inputs) != len(ends.outputs):
        raise InputError(f"{fields.where} must pair each input with one output")
    return ends


def _distinct(names: list[str], side: str) -> None:
    twice = sorted(name for name, uses in Counter(names).items() if uses > 1)
    if twice:
        raise InputError(f"{METADATA_KEY} maps {twice[0]!r} of the {side} model twice")


def check_interfaces(
    original: ModelInterface, optimized: ModelInterface, changes: InterfaceMap
) -> None:
    """Raise `InputError` naming the inputs and outputs whose difference ``changes`` leaves open."""
    before = [state.original for state in changes.states]
    after = [state.optimized for state in changes.states]
    extra = (changes.past_len_input,) if changes.past_len_input else ()
    _compare(
        "inputs",
        _unmapped(original.inputs, (n for ends in before for n in ends.inputs)),
        _unmapped(optimized.inputs, (*(n for ends in after for n in ends.inputs), *extra)),
    )
    _compare(
        "outputs",
        _unmapped(original.outputs, (n for ends in before for n in ends.outputs)),
        _unmapped(optimized.outputs, (n for ends in after for n in ends.outputs)),
    )


def _unmapped(ports: tuple[Port, ...], mapped: Iterable[str]) -> dict[str, Port]:
    """Ports by name without the mapped ones, each of which must be there."""
    by_name = {port.name: port for port in ports}
    names = set(mapped)
    missing = sorted(names - by_name.keys())
    if missing:
        raise InputError(
            f"{METADATA_KEY} names {', '.join(missing)}, which the model does not have"
        )
    return {name: port for name, port in by_name.items() if name not in names}


def _compare(what: str, before: dict[str, Port], after: dict[str, Port]) -> None:
    lost, gained = sorted(before.keys() - after.keys()), sorted(after.keys() - before.keys())
    changed = sorted(n for n in before.keys() & after.keys() if before[n].dtype != after[n].dtype)
    if not (lost or gained or changed):
        return
    parts = [("only in the original", lost), ("only in the optimized", gained)]
    parts += [("of another type", changed)]
    listed = "; ".join(f"{label}: {', '.join(names)}" for label, names in parts if names)
    raise InputError(
        f"the models differ in their {what} ({listed}) and {METADATA_KEY} does not say why; verify"
        " an optimized model against the file it was made from"
    )
