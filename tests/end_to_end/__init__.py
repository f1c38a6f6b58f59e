"""The whole of mla-opt on real exports: what it finds, writes, proves, refuses and survives."""
