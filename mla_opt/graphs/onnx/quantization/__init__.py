"""Quantization in ONNX graphs: which operators it is made of, and what they stand for."""
