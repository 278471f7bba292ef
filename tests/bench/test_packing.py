from __future__ import annotations

from pathlib import Path

from posecrafter.bench.packing import measure


def test_opening_a_merged_bundle_is_told_and_of_a_shared_one_two_people(tiny_bundle: Path, shared_bundle: Path) -> None:
    merged, shared = measure(tiny_bundle, 1), measure(shared_bundle, 1)
    assert merged["seconds"] > 0
    assert merged["peak_mib"] >= merged["before_mib"]
    assert "person_0" not in merged
    assert min(shared["person_0"]["seconds"], shared["person_1"]["seconds"]) > 0
