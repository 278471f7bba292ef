from __future__ import annotations

from pathlib import Path

import pytest
import torch

from posecrafter.bench import persons
from posecrafter.bench.person_bundle import write_bundle
from posecrafter.bench.speed.large import SD15
from posecrafter.runtime.low_rank import LowRank
from posecrafter.runtime.person import FOLDER, WEIGHTS

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = {"block_out_channels": [64], "down_block_types": ["CrossAttnDownBlock2D"], "cross_attention_dim": 8}
    packs = {"a": None, "b": None, "thin": LowRank(rank=2, scale=1.0)}
    return write_bundle(tmp_path_factory.mktemp("people") / "bundle", {**SD15, **small}, packs)


def test_people_are_loaded_rendered_and_come_back_in_a_process_of_their_own(bundle: Path) -> None:
    told = persons.record(bundle, "full matrices", ["a", "b"])
    assert told["people"] == 2
    assert told["pictures"] == 3  # the bundle's own person, and both
    assert told["restored_to_the_bit"]
    assert min(told["open_mib"], told["loaded_mib"]) > 0
    # Packs this small may fit in what the allocator gives back meanwhile; the kernel's counts are a few pages apart.
    assert max(told["open_mib"], told["loaded_mib"]) <= 1.02 * told["peak_mib"]
    assert told["swap_back_ms"]["p50"] < told["first_load_ms"]["p50"]


def test_a_low_rank_pack_is_smaller_and_another_picture(bundle: Path) -> None:
    assert persons.measure(bundle, ["thin"])["pictures"] == 2
    sizes = {name: (bundle / FOLDER / name / WEIGHTS).stat().st_size for name in ("a", "thin")}
    assert sizes["thin"] < 0.5 * sizes["a"]
