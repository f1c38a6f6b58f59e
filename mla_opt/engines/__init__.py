"""Engines of optimized models: the graphs they are made of, their precision, building them."""
