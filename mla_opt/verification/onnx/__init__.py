"""Running, and breaking on purpose, ONNX models."""
