"""The operators in PyTorch: registration, devices, translation to ONNX."""
