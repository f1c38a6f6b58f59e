"""Every figure that mla-opt claims, measured by one command: `python -m tests.benchmarks`."""
