"""`python -m posecrafter.bench.gpu`: records of this machine's GPU."""

from __future__ import annotations

import sys

from posecrafter.bench.gpu.records import main

if __name__ == "__main__":
    sys.exit(main())
