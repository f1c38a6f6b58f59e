"""The graph protocol over PyTorch programs."""
