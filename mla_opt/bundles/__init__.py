"""Bundles: a folder with all that it takes to run an optimized model in ONNX Runtime elsewhere.

    from mla_opt.bundles import BundleOptions, export_bundle

    export_bundle(Path("model.onnx"), Path("shipped"), BundleOptions(rows=4096))

The folder holds the model with caches that are written in place, the CPU kernel library of this
platform, a manifest, and loaders in Python and C++ that need nothing of this package.
"""

from __future__ import annotations

from mla_opt.bundles.export import BundleOptions, export_bundle
from mla_opt.bundles.manifest import BundleManifest, read_bundle

__all__ = ["BundleManifest", "BundleOptions", "export_bundle", "read_bundle"]
