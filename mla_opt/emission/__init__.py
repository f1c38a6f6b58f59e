"""Emitting latent attention in its two forms, absorbed and expanded, through a graph builder."""
