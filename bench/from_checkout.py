"""Run a module of the package from a plain checkout, where nothing can be installed:

    python bench/from_checkout.py posecrafter.bench.gpu_records --dry

The folders of a checkout carry the sub-packages' names, so the checkout itself is a second place where `posecrafter`
finds them.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    if len(sys.argv) < 2:
        print("usage: python bench/from_checkout.py posecrafter.MODULE [its arguments]", file=sys.stderr)
        return 2
    sys.path[0] = str(ROOT)
    import posecrafter

    posecrafter.__path__.append(str(ROOT))
    module = sys.argv[1]
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
