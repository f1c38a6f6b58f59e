"""Whole folders in, whole folders out."""
