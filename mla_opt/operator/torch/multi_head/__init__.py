"""``MultiHeadLatentAttention`` in PyTorch: calls, weights, both forms, and what computes where."""
