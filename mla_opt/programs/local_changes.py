"""Changes in place, as values.

Before:   x = new_empty;  v = slice(x);  copy_(v, y);  read(x)
After:    x = new_empty;  v = slice(x);  x' = slice_scatter(x, copy(v, y));  read(x')

Exporters assemble keys this way, and nothing else in most models changes in place. Tracing the
program again would do the same, in minutes for a deep model. What this does not know (a change of
a view of another kind) it leaves as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from mla_opt.graphs.torch.order import drop_dead

aten = torch.ops.aten

Inverse = Callable[[fx.Node], tuple[Any, tuple[Any, ...]]]


def _slice(view: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    return aten.slice_scatter.default, tuple(view.args[1:])


def _select(view: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    return aten.select_scatter.default, tuple(view.args[1:])


_SCATTERS: dict[Any, Inverse] = {aten.slice.Tensor: _slice, aten.select.int: _select}
"""Views of a part, and the operator that puts the part back."""

_UNTANGLED: dict[Any, Inverse] = {
    aten.transpose.int: lambda view: (aten.transpose.int, tuple(view.args[1:])),
    aten.unsqueeze.default: lambda view: (aten.squeeze.dim, tuple(view.args[1:])),
    aten.alias.default: lambda view: (aten.alias.default, ()),
    aten.detach.default: lambda view: (aten.alias.default, ()),
}
"""Views of the whole, and the operator that undoes them."""

_MAYBE_VIEWS = {"reshape", "contiguous", "flatten", "to", "expand_as", "view_as", "chunk"}
"""Operators that return a view or a copy, as it comes."""


def settle_changes(graph: fx.Graph, *, of_inputs: bool = False) -> dict[fx.Node, fx.Node]:
    """Rewrite every change whose tensor and views are all of kinds that this knows.

    Returns the inputs that were changed, ``of_inputs`` only, each with what it becomes.
    """
    for node in graph.nodes:
        if _functional(node) is not None:  # what it returns is what it was given
            node.replace_all_uses_with(node.args[0])
    changed = dict.fromkeys(_root(n.args[0]) for n in graph.nodes if _functional(n) is not None)
    roots = [
        root
        for root in changed
        if root is not None and _is_simple(root) and (of_inputs or root.op != "placeholder")
    ]
    if not roots:
        return {}
    settling = _Settling(graph, roots)
    settling.run()
    drop_dead(graph, keep=set(settling.latest.values()))
    return {root: now for root, now in settling.latest.items() if root.op == "placeholder"}


def _functional(node: fx.Node) -> Any:
    """The operator that returns what this one writes into its first operand, and nothing more."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return None
    name = target._schema.name.rpartition("::")[2]
    written = [argument.is_write for argument in target._schema.arguments]
    if not name.endswith("_") or not written[0] or any(written[1:]):
        return None
    packet = getattr(aten, name[:-1], None)
    return getattr(packet, target._overloadname, None)


def _root(value: Any) -> fx.Node | None:
    """The tensor of the graph whose memory a view shows; None for what is none of the graph's."""
    while isinstance(value, fx.Node) and _is_known_view(value):
        value = value.args[0]
    if not isinstance(value, fx.Node) or value.op not in ("call_function", "placeholder"):
        return None
    return value if value.op == "placeholder" or not _is_view(value) else None


def _is_known_view(node: fx.Node) -> bool:
    return node.target in _SCATTERS or node.target in _UNTANGLED or _is_idle(node)


def _is_idle(node: fx.Node) -> bool:
    """Whether this is a cast to the type and device that the tensor has, which returns itself.

    One with a flag, to copy or not to wait, is not looked into: it is a view of unknown kind.
    """
    flags = any(each is True for each in (*node.args, *node.kwargs.values()))
    return _is_cast(node) and not _is_copy(node) and not flags


def _is_cast(node: fx.Node) -> bool:
    return getattr(node.target, "overloadpacket", None) == aten.to and "val" in node.meta


def _is_copy(cast: fx.Node) -> bool:
    source = cast.args[0]
    assert isinstance(source, fx.Node)
    before, after = source.meta["val"], cast.meta["val"]
    return bool(before.dtype != after.dtype or before.device != after.device)


def _is_view(node: fx.Node) -> bool:
    """Whether the value may share memory with an operand."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return True
    if _is_cast(node) and _is_copy(node):
        return False
    name = target._schema.name.rpartition("::")[2]
    return target.is_view or name in _MAYBE_VIEWS


def _is_simple(root: fx.Node) -> bool:
    """Whether all that shares the memory is a view of a known kind or a change in place."""
    pending = [root]
    while pending:
        for user in pending.pop().users:
            if _is_known_view(user):
                pending.append(user)
            elif user.op != "output" and (_is_unknown_change(user) or _is_open_view(user)):
                return False
    return True


def _is_unknown_change(node: fx.Node) -> bool:
    target = node.target
    mutable = isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable
    return mutable and _functional(node) is None


def _is_open_view(node: fx.Node) -> bool:
    """Whether this is a view of an unknown kind that a later change would show in."""
    return _is_view(node) and _is_read_later(node)


def _is_read_later(view: fx.Node) -> bool:
    """Whether a change may come between a view of an unknown kind and those who read it."""
    return any(
        _functional(node) is not None and node > view for node in _all_views(_root(view.args[0]))
    )


def _all_views(root: fx.Node | None) -> list[fx.Node]:
    found: list[fx.Node] = []
    pending = [] if root is None else [root]
    while pending:
        users = list(pending.pop().users)
        found.extend(users)
        pending.extend(user for user in users if _is_known_view(user))
    return found


class _Settling:
    """One walk through the graph, with the latest value of every changed tensor."""

    def __init__(self, graph: fx.Graph, roots: Sequence[fx.Node]) -> None:
        self._graph = graph
        self.latest: dict[fx.Node, fx.Node] = {root: root for root in roots}
        self._changes = {n: _root(n.args[0]) for n in graph.nodes if _functional(n) is not None}
        self._views = {n: (_root(n), n.args[0]) for n in graph.nodes if _is_known_view(n)}
        self._fresh: dict[fx.Node, fx.Node] = {}

    def run(self) -> None:
        """Rewrite in graph order."""
        for node in list(self._graph.nodes):
            for operand in node.all_input_nodes:
                now = self._now(operand, node)
                if now is not operand:
                    node.replace_input_with(operand, now)
            root = self._changes.get(node)
            if root is not None and root in self.latest:
                self._settle(node, root)

    def _now(self, value: fx.Node, before: fx.Node) -> fx.Node:
        """What a value shows at this place: a view of a changed tensor is made anew."""
        if value in self.latest:
            return self.latest[value]
        root, source = self._views.get(value, (None, None))
        if root not in self.latest or not isinstance(source, fx.Node):
            return value
        if value not in self._fresh:
            now = self._now(source, before)
            self._fresh[value] = (
                value
                if value.args[0] is now
                else self._emit(before, value.target, (now, *value.args[1:]), value)
            )
        return self._fresh[value]

    def _settle(self, change: fx.Node, root: fx.Node) -> None:
        """Make the new value of the whole tensor, and forget what its views showed."""
        view = change.args[0]
        assert isinstance(view, fx.Node)
        value = self._emit(change, _functional(change), change.args, view, change.kwargs)
        whole, shown = value, view
        while _is_known_view(shown) and shown is not self.latest[root]:
            source = shown.args[0]
            assert isinstance(source, fx.Node)
            whole = self._put_back(change, shown, source, whole)
            shown = source
        self.latest[root] = whole
        self._fresh = {
            view: shown for view, shown in self._fresh.items() if self._views[view][0] is not root
        }
        self._graph.erase_node(change)

    def _put_back(self, change: fx.Node, view: fx.Node, source: fx.Node, part: fx.Node) -> fx.Node:
        """The source of a view with a new part in its place."""
        if view.target in _SCATTERS:
            target, rest = _SCATTERS[view.target](view)
            return self._emit(change, target, (source, part, *rest), source)
        if view.target not in _UNTANGLED:  # an idle cast
            return part
        target, rest = _UNTANGLED[view.target](view)
        return self._emit(change, target, (part, *rest), source)

    def _emit(
        self,
        before: fx.Node,
        target: Any,
        args: tuple[Any, ...],
        like: fx.Node,
        kwargs: dict[str, Any] | None = None,
    ) -> fx.Node:
        """A node whose result has the shape and type of ``like``'s."""
        with self._graph.inserting_before(before):
            node = self._graph.call_function(target, args, dict(kwargs or {}))
        node.meta = {key: like.meta[key] for key in ("val", "nn_module_stack") if key in like.meta}
        return node
