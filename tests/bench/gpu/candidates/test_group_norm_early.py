"""The norm begun early has the kernel's bits, in place too, and refuses what it refuses."""

from __future__ import annotations

import pytest
import torch

from posecrafter.bench.gpu.candidates import group_norm_early
from posecrafter.errors import EngineError
from posecrafter.kernels import group_norm_silu as today

SIZES = {"prompts": 2, "frames": 3, "channels": 40, "high": 9, "wide": 24, "groups": 4, "add": 1}


def given(**sizes: int) -> dict[str, object]:
    return today.inputs({**SIZES, **sizes}, torch.float16, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("add", [0, 1])
def test_it_has_the_kernels_bits_also_in_place(add: int) -> None:
    x = given(add=add)
    expected = today.launch(**x)
    assert expected.isfinite().all()
    for run in (group_norm_early.launch, group_norm_early.in_place):
        torch.testing.assert_close(run(**x), expected, rtol=0, atol=0)


def test_what_the_kernel_refuses_and_parts_before_hopper_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x = given()
    for wrong, code in ((x["x"].contiguous(), "kernel-layout"), (x["x"].double(), "kernel-dtype")):
        with pytest.raises(EngineError) as caught:
            group_norm_early.launch(**{**x, "x": wrong})
        assert caught.value.code == code
    monkeypatch.setattr(group_norm_early, "capability", lambda x: 89)
    with pytest.raises(EngineError) as caught:
        group_norm_early.launch(**x)
    assert caught.value.code == "kernel-device"
