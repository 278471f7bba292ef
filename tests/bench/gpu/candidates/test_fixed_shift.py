"""The fixed shift at odd sizes, where it is too small, and what its launch refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from posecrafter.bench.gpu.candidates.fixed_shift import TILES, Tile, launch, loud
from posecrafter.bench.gpu.kernels import Case, check_run
from posecrafter.errors import EngineError
from posecrafter.kernels.key_frame_attention import inputs, truth

HALF, BRAIN = torch.float16, torch.bfloat16
SMALL = Tile(16, 16, 4, 3)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of infinite weights, which are the point


def given(head: int, keys: int, dtype: torch.dtype = HALF, heads: int = 2) -> dict[str, torch.Tensor]:
    sizes = {"prompts": 2, "frames": 3, "tokens": 9, "keys": keys, "heads": heads, "head": head}
    return inputs(sizes, dtype, torch.Generator().manual_seed(3))


def assert_true(x: dict[str, torch.Tensor], tile: Tile, dtype: torch.dtype = HALF) -> int:
    """Returns how many blocks went twice."""
    again = torch.zeros(1, dtype=torch.int32)
    result = check_run(lambda **x: launch(**x, tile=tile, again=again), Case("key_frame_attention", {}, dtype, True), x)
    assert result["holds"], result
    return int(again)


@pytest.mark.parametrize("head", [16, 24, 40, 64, 80, 96, 160])
@pytest.mark.parametrize(("one", "held"), [(False, False), (True, True), (False, True)])
def test_it_takes_every_width_of_head_and_as_few_keys_as_a_block(head: int, one: bool, held: bool) -> None:
    for keys in (16, 48):
        assert assert_true(given(head, keys), Tile(16, 16, 4, 3, one=one, held=held)) == 0


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_a_loud_key_sends_its_own_prompts_blocks_through_twice(dtype: torch.dtype) -> None:
    blocks = 2 * 2  # of 27 rows in 16s, and heads, of one prompt
    assert 0 < assert_true(loud(given(40, 48, dtype)), SMALL, dtype) <= blocks


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_a_weight_that_any_sum_can_hold_may_not_make_the_products_infinite(dtype: torch.dtype) -> None:
    """2^127 in bf16 leaves the row's sum finite, and 2^127 times a value is not."""
    x = given(40, 48, dtype, heads=1)
    x["q"][:] = 0
    x["q"][..., 0] = 8
    x["k"][..., 0] = 0
    x["k"][:, 1, 0] = 127 / 8 * 40**0.5 / 1.4427
    x["v"][:, 1] = 30
    assert assert_true(x, SMALL, dtype) == 2 * 2


def test_scores_far_below_zero_leave_a_sum_of_one_or_more() -> None:
    """The shift is a real score, however low."""
    x = given(40, 48)
    x["q"] = torch.full_like(x["q"], 8)
    x["k"] = -x["k"].abs() - 4
    assert assert_true(x, SMALL) == 0


def test_what_is_not_a_number_stays_in_its_prompt() -> None:
    x = given(40, 32)
    x["k"][0, 3, 0] = float("nan")
    out = launch(**x, tile=SMALL)
    assert out[:3, :, :40].isnan().all()
    expected = truth(**{name: y.double().numpy() if isinstance(y, torch.Tensor) else y for name, y in x.items()})
    assert np.abs(out[3:].double().numpy() - expected[3:]).max() < 1e-2


def test_rows_may_be_slices_of_wider_ones() -> None:
    x = given(40, 32)
    wide = torch.cat([x["k"], x["v"]], -1)
    joined = torch.cat([x["q"], x["q"]], -1)
    x |= {"q": joined[..., 80:], "k": wide[..., :80], "v": wide[..., 80:]}
    assert_true(x, SMALL)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda x: given(40, 77), "kernel-shape"),
        (lambda x: given(8, 64), "kernel-shape"),
        (lambda x: {**x, "heads": 3}, "kernel-shape"),
        (lambda x: {**x, "v": x["v"].float()}, "kernel-dtype"),
        (lambda x: {**x, "q": x["q"].transpose(0, 1).contiguous().transpose(0, 1)}, "kernel-layout"),
        (lambda x: {**x, "k": torch.cat([x["k"]] * 2, -1)[..., :80]}, "kernel-layout"),
    ],
)
def test_what_it_cannot_take_is_refused(change: object, code: str) -> None:
    with pytest.raises(EngineError) as caught:
        launch(**change(given(40, 64)), tile=TILES["two tiles of K"])
    assert caught.value.code == code
