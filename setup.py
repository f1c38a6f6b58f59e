"""Compiles the kernel library into the package; all else about it stands in pyproject.toml.

Without a compiler, or when compiling fails, the package is installed all the same: models then run
by the function bodies that they carry.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


def _builder() -> ModuleType:
    """The package's own build module, by its path: the package cannot be imported yet."""
    path = Path(__file__).parent / "mla_opt" / "kernels" / "building" / "build.py"
    spec = importlib.util.spec_from_file_location("mla_opt_kernels_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildWithKernels(build_py):
    """Puts the library beside the Python files, of the build or, when editable, of the sources."""

    def run(self) -> None:
        """Copy the Python files, then compile."""
        super().run()
        builder = _builder()
        home = Path() if self.editable_mode else Path(self.build_lib)
        library = home / "mla_opt" / "kernels" / builder.NAME
        try:
            print(f"built {builder.build(library)}")
        except (builder.BuildError, OSError) as error:
            print(f"mla-opt: no kernel library: {error}", file=sys.stderr)
            print("mla-opt: models will run by their function bodies", file=sys.stderr)


class PlatformDistribution(Distribution):
    """Belongs to a platform where there will be a library."""

    def has_ext_modules(self) -> bool:
        """Whether there is a compiler: known before anything is compiled."""
        builder = _builder()
        try:
            builder.compiler()
        except builder.BuildError:
            return False
        return True


class PlatformWheel(bdist_wheel):
    """A library, but none that knows Python's ABI: a wheel for every Python 3 of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of Python, its ABI and the platform."""
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


setup(
    cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel},
    distclass=PlatformDistribution,
)
