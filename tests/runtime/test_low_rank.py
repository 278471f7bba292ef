from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from posecrafter.errors import BundleError
from posecrafter.finetune.lora import merge_lora
from posecrafter.runtime.low_rank import DOWN, UP, LowRank, multiply_out


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_factors_multiply_out_to_what_the_exporter_merges(dtype: type, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    base = random.standard_normal((33, 17)).astype(dtype)
    factors = {end: random.standard_normal(shape).astype(np.float16) for end, shape in ((DOWN, (3, 17)), (UP, (33, 3)))}
    save_file({"g/a.weight": base}, tmp_path / "base.safetensors")
    pack = {f"g/a{end}": factor for end, factor in factors.items()} | {"g/a.bias": base[0]}
    made = multiply_out(tmp_path / "pack", pack, LowRank(3, 0.7), tmp_path / "base.safetensors")
    updates = {f"a{end}": torch.from_numpy(factor) for end, factor in factors.items()}
    merged = merge_lora(updates, {"a.weight": torch.from_numpy(base).float()}, 0.7)["a.weight"].numpy().astype(dtype)
    assert made.keys() == {"g/a.weight", "g/a.bias"}
    assert made["g/a.weight"].dtype == dtype
    np.testing.assert_array_max_ulp(made["g/a.weight"], merged, maxulp=1)
    assert made["g/a.bias"] is pack["g/a.bias"]


def test_a_base_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "base.safetensors").write_bytes(b"nothing")
    with pytest.raises(BundleError) as caught:
        multiply_out(tmp_path / "pack", {}, LowRank(3, 1.0), tmp_path / "base.safetensors")
    assert caught.value.code == "bundle-person"
    assert "base.safetensors" in caught.value.message
