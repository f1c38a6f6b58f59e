"""mla-opt inside other people's tools: one module for each, imported by whoever has that tool."""
