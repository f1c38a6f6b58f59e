"""Models that are quantized before they are optimized, or after."""
