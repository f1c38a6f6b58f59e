"""Stored tensors that take memory only while somebody reads them."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Kind = TypeVar("Kind", bound=ir.ExternalTensor)

_KEPT = 1 << 16
"""Bytes up to which a content that was read once is kept: small ones are read again and again."""


class MappedTensor(ir.ExternalTensor):
    """External data whose mapping ends with the last array that looks at it.

    onnx_ir keeps a mapping of the whole file for every tensor that was read once, and every page
    of it that was touched counts as memory of the process.
    """

    __slots__ = ("_small",)

    @classmethod
    def of(cls, tensor: ir.ExternalTensor) -> MappedTensor:
        """The same data, in the same file."""
        return _of_kind(cls, tensor)

    def numpy(self) -> npt.NDArray[Any]:
        """The content, mapped anew; of a small tensor a copy, which is kept."""
        small: npt.NDArray[Any] | None = getattr(self, "_small", None)
        if small is not None:
            return small
        content = np.asarray(self._looked_at().numpy())
        if self.nbytes > _KEPT:
            return content
        self._small = content.copy()
        return self._small

    def __array__(self, dtype: Any = None) -> npt.NDArray[Any]:
        """As NumPy asks for it."""
        return self.numpy().__array__(dtype)

    def tobytes(self) -> bytes:
        """The bytes, as they are in the file."""
        return self._looked_at().tobytes()

    def _looked_at(self) -> ir.ExternalTensor:
        """A tensor of onnx_ir's, which maps and checks the file; let go with its array."""
        return _of_kind(ir.ExternalTensor, self)


def _of_kind(kind: type[Kind], tensor: ir.ExternalTensor) -> Kind:
    return kind(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
        base_dir=tensor.base_dir,
    )
