"""What has to hold of an ONNX graph before the tokens of all its sequences may come packed."""
