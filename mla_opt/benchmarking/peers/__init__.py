"""Other runtimes and libraries that run the same model, to be timed beside it."""
