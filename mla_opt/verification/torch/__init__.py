"""Running, and breaking on purpose, PyTorch programs."""
