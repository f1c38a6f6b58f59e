"""Real exports of real model code: the graphs every claim of this project is tested on.

`families` builds tiny random-weight models of each latent-attention architecture, `exporters` turns
them into ONNX with each exporter people use, `cache` keeps the files, `oracle` runs the same
weights in PyTorch, `controls` are models to leave alone, and `sweep` walks the whole matrix and
writes the coverage table. Nothing but `sweep` knows the optimizer.
"""
