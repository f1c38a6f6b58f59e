"""PyTorch's operators, registered by ``import torch``.

A saved program, ``torch.export.load("model.pt2")``, names the operators that it calls, and nothing
in it says who registers them. The package is one of PyTorch's extensions for that reason (entry
point group ``torch.backends``, since PyTorch 2.5): ``import torch`` calls `register`, and a program
loads in a process that imports nothing of this package.

The other ways were looked at and are worse. Registering in ``mla_opt/__init__.py`` would import
PyTorch for those who have only ONNX files. An import hook there, which waits for PyTorch, is code
of our own in the import machinery of every program, and helps only those who know that the package
must be imported. Registering takes PyTorch less than a millisecond, since kernels are imported by
the first call of one.

``TORCH_DEVICE_BACKEND_AUTOLOAD=0`` turns all such extensions off. Then, and with older releases of
PyTorch, ``import mla_opt.operator.torch.op`` registers.
"""

from __future__ import annotations

import logging


def register() -> None:
    """Register the operators; a failure is logged, since PyTorch would not be imported for it."""
    try:
        import mla_opt.operator.torch.op  # noqa: F401
    except Exception:
        logging.getLogger("mla_opt").warning(
            "torch.ops.mla_opt could not be registered; `import mla_opt.operator.torch.op` tries"
            " again",
            exc_info=True,
        )
