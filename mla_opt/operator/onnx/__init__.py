"""The operators' function bodies of standard ONNX operators, and their nodes."""
