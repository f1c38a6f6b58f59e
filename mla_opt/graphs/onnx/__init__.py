"""The graph protocol over ONNX models."""
