"""Whole folders: what programs open as one model, optimized so that the same programs open it.

What kind of folder it is, is read off its files (`mla_opt.folders.kinds` is the table, one file a
kind). The ONNX files are optimized, configs that describe their caches follow, the rest is copied.
"""

from __future__ import annotations

from mla_opt.folders.optimize import optimize_folder
from mla_opt.folders.result import ConfigChange, FolderFile, FolderResult

__all__ = ["ConfigChange", "FolderFile", "FolderResult", "optimize_folder"]
