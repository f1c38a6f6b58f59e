"""Latent attention in Triton, for CUDA devices: split over the keys, then combined.

Importing this package imports nothing of Triton; its modules do.
"""
