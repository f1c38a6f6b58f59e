"""Verifying a model over packed tokens: it is driven like the original, call by call.

ONNX Runtime has no kernel of PagedAttention on the CPU. A model is run with standard operators in
the place of each (`stand_in`), which do what the operator's contract says. Padded calls are packed
in front of it, and its outputs are unpacked behind (`session`), so that scenarios, tolerances and
controls are those of all other models.
"""
