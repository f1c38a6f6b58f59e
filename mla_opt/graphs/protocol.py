"""The one small view of a graph that matching and rewriting are written against.

An adapter wraps one intermediate representation (:mod:`mla_opt.graphs.onnx.graph` for onnx_ir),
whose values and nodes are handles here (:mod:`mla_opt.handles`): all but their names is asked of
the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mla_opt.geometry import MlaGeometry
from mla_opt.graphs.operations import Operation
from mla_opt.graphs.sizes import Expression
from mla_opt.handles import Array, Node, Value
from mla_opt.operator.kv_b import KvB, Storage
from mla_opt.sites import LatentAttentionSite, PrefillForm
from mla_opt.sites.drafts import Draft

EXAMPLE = (2, 4, 3)
"""Batch, query length and past length at which example shapes are told and regions are run."""

FAR = (1, 1 << 16, 1 << 16)
"""Batch, query length and past length, far from :data:`EXAMPLE`: what differs has a free size."""

Size = int | tuple[int | tuple[Value, int | None], ...]
"""A number, or axes of values and numbers that add up to it.

Without an axis, the value itself is the size: an int64 vector of one element.
"""


class Builder(Protocol):
    """Emits standard operations, all of them at one place of a graph.

    Operands are values of the graph or values that this builder made. Shapes in the comments are
    those of the results.
    """

    def constant(self, array: Array, name: str, dtype: np.dtype[Any] | None = None) -> Value:
        """A stored tensor, of the array's element type or another."""

    def integers(self, *numbers: int) -> Value:
        """An int64 vector."""

    def scalar_like(self, number: float, like: Value, name: str) -> Value:
        """A stored scalar of another value's element type."""

    def scaled(self, value: Value, number: float, like: Value, name: str) -> Value:
        """The value times a number, which is held more exactly than bfloat16 holds it.

        Both are of the element type of ``like``.
        """

    def declare_like(self, value: Value, like: Value) -> None:
        """Note that a value has another's element type, where the graph does not say."""

    def is_boolean(self, value: Value) -> bool:
        """Whether the element type is boolean."""

    def dimension(self, value: Value, axis: int) -> Value:
        """Size of one axis, int64 ``[1]``."""

    def matmul(self, left: Value, right: Value, name: str) -> Value:
        """Matrix product over the last two axes."""

    def add(self, left: Value, right: Value, name: str) -> Value:
        """Sum, broadcasting."""

    def subtract(self, left: Value, right: Value, name: str) -> Value:
        """Difference, broadcasting."""

    def positions(self, count: Value, name: str) -> Value:
        """``0 .. count - 1``, int64; ``count`` is an int64 vector of one element."""

    def multiply(self, left: Value, right: Value, name: str) -> Value:
        """Product, broadcasting."""

    def divide(self, left: Value, right: Value, name: str) -> Value:
        """``left / right``, broadcasting."""

    def greater(self, left: Value, right: Value, name: str) -> Value:
        """True where ``left > right``."""

    def negate(self, condition: Value, name: str) -> Value:
        """True where ``condition`` is false."""

    def both(self, left: Value, right: Value, name: str) -> Value:
        """True where both are."""

    def where(self, condition: Value, chosen: Value, other: Value, name: str) -> Value:
        """``chosen`` where ``condition``, else ``other``."""

    def concat(self, parts: Sequence[Value], axis: int, name: str) -> Value:
        """Concatenation."""

    def split(
        self, value: Value, sizes: Sequence[int], axis: int, names: Sequence[str]
    ) -> tuple[Value, ...]:
        """Consecutive pieces of the given sizes."""

    def gather(self, value: Value, indices: Sequence[int], axis: int, name: str) -> Value:
        """The given positions of one axis, in order."""

    def slice(self, value: Value, start: int, end: int, axis: int, name: str) -> Value:
        """Positions ``start`` to ``end`` of one axis."""

    def transpose(self, value: Value, permutation: Sequence[int], name: str) -> Value:
        """Axes permuted."""

    def reshape(self, value: Value, shape: Value, name: str) -> Value:
        """Same elements in another shape; ``shape`` is an int64 vector."""

    def unsqueeze(self, value: Value, axis: int, name: str) -> Value:
        """One more axis of size one."""

    def expand(self, value: Value, shape: Value, name: str) -> Value:
        """Axes of size one repeated; ``shape`` has ones where nothing is repeated."""

    def put(self, whole: Value, places: Value, rows: Value, name: str) -> Value:
        """``whole [B, 1, M, X]`` with ``rows [B, 1, S, X]`` in ``places``.

        They are int64, ``[B, 1, S, 1]``, with one place for all sequences where B is 1.
        """

    def write_rows(self, buffer: Value, rows: Value, start: Value, name: str) -> Value:
        """``buffer [B, 1, M, X]`` with ``rows [B, 1, S, X]`` from place ``start`` on."""

    def first(self, value: Value, count: Value, axis: int, name: str) -> Value:
        """The first ``count`` places of one axis; ``count`` is an int64 vector of one element."""

    def put_first(self, whole: Value, part: Value, name: str) -> Value:
        """``whole`` with ``part`` in the place of as much of the first axis, from its front on."""

    def as_count(self, number: Value) -> Value:
        """A number that the graph computes as an int64 vector of one element."""

    def put_each(self, whole: Value, places: Value, rows: Value, name: str) -> Value:
        """``whole [B, M, ...]`` with ``rows [B, S, ...]`` at ``places [B, S, 2]``.

        A place is a number of a sequence and one of a row.

        Raises:
            InputError: this kind of graph has no attention that needs it.
        """

    def softmax(self, value: Value, name: str) -> Value:
        """Softmax over the last axis."""

    def row_maximum(self, value: Value, name: str) -> Value:
        """Maximum over the last axis, kept as an axis of size one."""

    def cast_like(self, value: Value, like: Value, name: str) -> Value:
        """The value in another's element type."""

    def largest(self, value: Value, name: str) -> Value:
        """Largest element of an integer vector, int64 ``[1]``."""

    def widen_mask(self, bias: Value, columns: Value, like: Value, name: str) -> Value:
        """A bias with as many columns, those beyond its own forbidden.

        A boolean one stays boolean: a quarter of the memory, which grows with tokens times rows.

        A bias with one column, the same for all keys, stays as it is.
        """

    def latent_attention(
        self,
        operands: Mapping[str, Value],
        *,
        scale: float,
        kv_lora_rank: int,
        causal: bool,
        name: str,
        even: bool = False,
    ) -> tuple[Value, ...]:
        """One ``LatentAttention``: its outputs, in the order of the contract.

        ``even`` says that its caches hold halves of rows, which are no ``c_kv`` and ``k_pe``.
        """

    def multi_head_latent_attention(
        self,
        operands: Mapping[str, Value],
        *,
        storage: Storage,
        scale: float,
        geometry: MlaGeometry,
        causal: bool,
        form: PrefillForm,
        name: str,
        even: bool = False,
    ) -> tuple[Value, ...]:
        """One ``MultiHeadLatentAttention``: its outputs, in the order of the contract.

        ``even`` as for ``latent_attention``.
        """

    def prefill_crossover(
        self, geometry: MlaGeometry, counted: int, rows: Value, name: str
    ) -> Value:
        """New tokens from which on expanding is faster, int64 ``[1]``.

        ``counted`` is what counting operations says; what runs the graph may know better.
        ``rows`` has the type of the latent rows.
        """

    def branch(
        self,
        condition: Value,
        when_true: BranchBody,
        when_false: BranchBody,
        name: str,
    ) -> tuple[Value, ...]:
        """A conditional; each body gets a builder of its own and returns the same outputs."""


class BranchBody(Protocol):
    """Emits one branch of a conditional and returns its outputs."""

    def __call__(self, builder: Builder) -> Sequence[Value]:
        """Emit into ``builder``."""


class Graph(Protocol):
    """What the passes may ask of a graph and do to it.

    ``sites`` are the latent attentions found so far; ``find_latent_attention`` fills it and the
    later passes complete its entries. ``drafts`` are rewritings that stay only if it finds what
    they are for. ``runs_in_threads`` says that bindings may run parts in several threads at a time,
    while nobody changes the graph.
    """

    sites: list[LatentAttentionSite]
    drafts: list[Draft]
    roundings: Sequence[Rounding]
    runs_in_threads: bool

    def nodes(self) -> Sequence[Node]:
        """All nodes of the main graph, producers before consumers."""

    def position(self, node: Node) -> int:
        """Place of a node in that order, as it was when the graph was looked at."""

    def operation(self, node: Node) -> Operation:
        """What the node means."""

    def refresh(self) -> None:
        """Look at the graph anew: nodes were put into it, or read other values now."""

    def label(self, node: Node) -> str:
        """How messages name the node: its name and operator."""

    def producer(self, value: Value) -> Node | None:
        """The node that makes the value; ``None`` for inputs and stored tensors."""

    def consumers(self, value: Value) -> Sequence[Node]:
        """The nodes that read the value."""

    def operands(self, node: Node) -> Sequence[Value]:
        """What the node reads, absent optional operands left out."""

    def results(self, node: Node) -> Sequence[Value]:
        """What the node makes."""

    def alike(self, one: Value, other: Value) -> bool:
        """Whether two values are the same in every call: one, or computed alike of the same."""

    def unchanged(self, node: Node) -> Value | None:
        """The operand that is all the node returns, as it is and at every size.

        ``None`` where that is not proved, or where more than the first result is read.
        """

    def packed_rows(self, node: Node) -> Array | None:
        """The weight ``[W, C]`` of a linear layer that is stored packed, read by its definition.

        ``None`` where the layer has to be run to tell its matrix.
        """

    def stored_rows(self, rows: Array) -> KvB | None:
        """Where the graph keeps these rows ``[W, C]`` in fewer bits, number by number.

        They may lie in any order among others; what comes back is in the order of ``rows``, bit
        for bit as it is stored. ``None``: they are kept nowhere, or only as they are.
        """

    def scaled_rows(self, rows: Array) -> KvB | None:
        """Codes that the graph keeps, and scales with which they are these rows ``[W, C]``.

        The codes come bit for bit as they are stored, the scales as all that they are multiplied
        with on their way. ``None``: the rows are multiples of no stored codes.
        """

    def factored_rows(self, rows: Array) -> tuple[KvB, Array] | None:
        """Codes and scales whose columns, times stored factors ``[C]``, are these rows ``[W, C]``.

        As a norm, or a smoothing, in front of a quantized layer multiplies each number of what it
        reads. ``None``: there are no such codes, or no such factors.
        """

    def is_input(self, value: Value) -> bool:
        """Whether the value is an input of the graph."""

    def is_changed(self, value: Value) -> bool:
        """Whether a call changes an input of the graph in place."""

    def why_it_stays(self, value: Value) -> str:
        """Why an input cannot hold something else from now on, in words; empty if it can."""

    def is_output(self, value: Value) -> bool:
        """Whether the value is an output of the graph."""

    def constant(self, value: Value) -> Array | None:
        """Content of a stored tensor; ``None`` when the value is computed."""

    def is_constant(self, value: Value) -> bool:
        """Whether the value depends on stored tensors only."""

    def stored_name(self, value: Value) -> str | None:
        """The name by which the model keeps a stored tensor; ``None`` for all other values."""

    def keep_aside(self, array: Array) -> Array:
        """The same array; where it is large and kept for long, out of memory if that can be."""

    def let_go(self) -> None:
        """Give back the memory of what was read of arrays that are kept aside."""

    def has_content(self) -> bool:
        """Whether stored tensors have a content; if not, parts are run on made-up ones."""

    def dtype(self, value: Value) -> np.dtype[Any]:
        """Element type."""

    def bind(self, batch: int, query_len: int, past_len: int) -> Binding:
        """Fix the dynamic dims of the inputs: a view in which every shape is a number."""

    def nearest_inputs(
        self, batch: int, query_len: int, past_len: int
    ) -> tuple[tuple[int, int, int], Mapping[str, tuple[int, ...]]]:
        """The sizes nearest to these that the model takes, and its inputs' shapes by name."""

    def nearest_binding(self, batch: int, query_len: int, past_len: int) -> Binding:
        """Like :meth:`bind`, with the sizes that the model fixes in place of those asked for."""

    def sizes(self, value: Value) -> tuple[Expression, ...] | None:
        """Shape as expressions of the model's own symbols, true at every size; else ``None``."""

    def example_shape(self, value: Value) -> tuple[int, ...] | None:
        """Shape of a value at a small example of every dynamic dim."""

    def builder(self, before: Node, prefix: str) -> Builder:
        """A builder that emits in front of ``before``; names begin with ``prefix``."""

    def redirect(self, old: Value, new: Value) -> bool:
        """Let all readers of ``old`` read ``new``; outputs and names stay. Were there any?"""

    def remove(self, node: Node) -> None:
        """Remove a node whose results nobody reads, and what was made for it alone."""

    def replace(self, old: Value, new: Value) -> None:
        """Let all readers and the outputs have ``new`` for ``old``, under ``old``'s name."""

    def declared_shape(self, value: Value) -> tuple[int | str | None, ...]:
        """Shape as the file declares it; symbols are strings. Empty when it declares none."""

    def replace_input(
        self,
        old: Value,
        name: str,
        shape: Sequence[int | str | None],
        dtype: str | None = None,
        moved: Mapping[int, int] | None = None,
    ) -> Value:
        """Put another input, with ``old``'s element type or another, in the place of ``old``.

        ``moved`` says which axis of the new one counts what an axis of ``old`` did, where that is
        another.

        What read the shape of ``old`` keeps seeing the sizes that ``old`` would have had, as far as
        the new input has them; nothing else may still read ``old`` when the rewriting is done.
        """

    def add_input(self, name: str, dtype: str, shape: Sequence[int | str | None]) -> Value:
        """One more input, behind the others. Raises `InputError` if the name is taken."""

    def declare_rows(self, value: Value, rows: int | str) -> None:
        """Declare how many rows an output has on its token axis."""

    def declare_width(self, value: Value, width: int) -> None:
        """Declare how wide the last axis of an output is."""

    def add_output(
        self, value: Value, name: str, shape: Sequence[int | str | None] | None = None
    ) -> None:
        """Return one more value, behind the others. Raises `InputError` if the name is taken."""

    def remove_input(self, old: Value, like: Value, moved: Mapping[int, int] | None = None) -> None:
        """Remove an input; what read its shape reads it off ``like``, which has the same rows."""

    def replace_output(
        self, old: Value, new: Value, shape: Sequence[int | str | None] | None = None
    ) -> None:
        """Return ``new`` where ``old`` was returned, by its name; readers of ``old`` stay.

        ``shape`` is what the output is declared to be from now on.
        """

    def remove_output(self, value: Value) -> None:
        """Return a value no more."""

    def merge_outputs(
        self,
        olds: Sequence[Value],
        new: Value,
        name: str,
        shape: Sequence[int | str | None] | None = None,
    ) -> None:
        """Return ``new`` in the place of the first of ``olds``, and no other of them."""

    def reads(self, node: Node) -> Sequence[Value]:
        """Like :meth:`operands`, with what the branches of a conditional read of the graph."""

    def is_shape_reader(self, node: Node) -> bool:
        """Whether the node reads nothing of its operand but the shape."""

    def shape_readers(self, value: Value) -> Sequence[Node]:
        """The nodes that read nothing of the value but its shape."""

    def replace_shape(self, reader: Node, sizes: Sequence[Size]) -> None:
        """Give the readers of a shape one put together from numbers and axes of other values."""

    def take_out_roundings(self) -> Sequence[Rounding]:
        """Let everything read activations as they are before quantization rounds them.

        Returns the places where they were rounded; the graph keeps them as ``roundings``.
        """

    def put_back_roundings(self) -> int:
        """Round again for those who read it so and are still there; returns in how many places."""

    def returned(self) -> Sequence[Value]:
        """Outputs of the graph."""

    def taken(self) -> Sequence[Value]:
        """Inputs of the graph."""

    def inline(self, domain: str) -> int:
        """Put the bodies of a domain's functions in place of their calls.

        Returns how many functions that were.
        """

    def prune(self) -> int:
        """Sort the nodes and drop what nothing reads; returns how many nodes that were."""

    def settle_functions(self) -> None:
        """Declare what the fused operators of the model need, and nothing that is not used."""

    def text(self) -> str:
        """The graph as a person reads it."""


class Rounding(Protocol):
    """One place where quantization rounded activations."""

    @property
    def readers(self) -> tuple[Node, ...]:
        """The nodes that read the rounded numbers."""


class Binding(Protocol):
    """A graph with fixed input shapes: shapes are numbers and parts of it can be run."""

    sizes: tuple[int, int, int]
    """Batch, query length and past length of this binding."""

    def shape(self, value: Value) -> tuple[int, ...] | None:
        """Shape under this binding; ``None`` when it cannot be told."""

    def repeated(self) -> Binding:
        """A view for running the same parts again and again, while the graph does not change."""

    def run(self, outputs: Sequence[Value], feeds: Mapping[Value, Array]) -> list[Array]:
        """Run the nodes between ``feeds`` and ``outputs``.

        Raises:
            UnboundValueError: the outputs depend on the data of something that is not fed.
        """
