"""`python -m posecrafter.bench.quality`: how good the pictures are."""

from __future__ import annotations

from posecrafter.bench.quality.records import main

if __name__ == "__main__":
    main()
