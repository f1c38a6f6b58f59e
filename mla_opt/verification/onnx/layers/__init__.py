"""The proof of a model by its layers: what two models have in common, and what has to be run."""
