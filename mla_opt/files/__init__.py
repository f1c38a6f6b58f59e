"""Models in and out of files: hostile input is checked, an output appears whole or not at all."""
