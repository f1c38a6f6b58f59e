"""Running optimized models: sessions, caches and generation, one package for each runtime."""
