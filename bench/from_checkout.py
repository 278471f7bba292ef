"""Run a module of the package from a plain checkout, where nothing can be installed:

    python bench/from_checkout.py posecrafter.bench.gpu --dry

The folders of a checkout carry the sub-packages' names. Links to all of them in one folder are the package, for this
process and for those that it spawns.
"""

from __future__ import annotations

import runpy
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    if len(sys.argv) < 2:
        print("usage: python bench/from_checkout.py posecrafter.MODULE [its arguments]", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="posecrafter-checkout-") as folder:
        package = Path(folder) / "posecrafter"
        package.mkdir()
        parts = [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "posecrafter"]
        for part in (*(ROOT / "posecrafter").iterdir(), *parts):
            (package / part.name).symlink_to(part)
        sys.path[0] = folder
        module = sys.argv[1]
        sys.argv = sys.argv[1:]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
