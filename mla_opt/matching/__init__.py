"""Finding latent attention by what a graph means, not by names or by the order of its nodes.

`attention_core` finds the attentions, `projection_walk` follows keys and values to where they come
from, `latent_region` decides, `extraction` reads the matrices off by running the region.
"""
