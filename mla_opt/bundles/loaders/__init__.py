"""The loaders that a bundle brings; they are copied into it and import nothing of this package."""
