"""``python -m mla_opt.kernels``: compile the kernel library in place."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mla_opt.kernels.building.build import LIBRARY, BuildError, build, is_current


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the library in place, unless it is there and current."""
    parser = argparse.ArgumentParser(
        prog="python -m mla_opt.kernels", description="Compile the kernel library."
    )
    parser.add_argument("--force", action="store_true", help="even if it is current")
    if not parser.parse_args(arguments).force and is_current():
        print(f"{LIBRARY} is current")
        return 0
    try:
        print(f"built {build()}")
    except (BuildError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
