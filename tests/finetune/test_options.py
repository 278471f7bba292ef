from __future__ import annotations

import pytest

from posecrafter.errors import TrainingError
from posecrafter.finetune.base import Defaults
from posecrafter.finetune.options import FinetuneOptions


@pytest.mark.parametrize(("size", "near"), [((500, 512), "496x512"), ((129, 127), "128x128"), ((3, 8), "8x8")])
def test_a_size_not_divisible_by_8_is_refused_with_one_that_is(size, near) -> None:
    with pytest.raises(TrainingError, match=near) as caught:
        FinetuneOptions(width=size[0], height=size[1])
    assert caught.value.code == "size-not-divisible"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("steps", 0),
        ("window", 1),
        ("save_every", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("grad_clip", -1.0),
        ("weight_decay", -0.1),
        ("discriminator_weight", -0.1),
        ("discriminator_weight", float("inf")),
        ("lora_rank", 0),
        ("max_seconds", 0.0),
        ("seed", -1),
        ("adapt_decoder", -1),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(option, value) -> None:
    with pytest.raises(TrainingError, match=option) as caught:
        FinetuneOptions(**{option: value})
    assert caught.value.code == "options-range"


def test_a_lora_of_all_weights_is_refused() -> None:
    with pytest.raises(TrainingError) as caught:
        FinetuneOptions(lora_rank=4, scope="all")
    assert caught.value.code == "options-conflict"


def test_the_bases_defaults_hold_where_nothing_is_given() -> None:
    defaults = Defaults(width=128, height=64, learning_rate=1e-3, train_steps=7, train="all", window=5, adapt_decoder=9)
    options = FinetuneOptions.for_base(defaults, steps=None, learning_rate=2e-3, scope=None)
    assert options == FinetuneOptions(
        width=128, height=64, learning_rate=2e-3, steps=7, scope="all", window=5, adapt_decoder=9
    )


def test_a_lora_turns_a_bases_default_of_all_weights_into_the_methods() -> None:
    assert FinetuneOptions.for_base(Defaults(train="all"), lora_rank=8).scope == "method"


def test_a_cosine_rises_shortly_and_falls_to_nearly_nothing_and_a_constant_rate_stays() -> None:
    falling = FinetuneOptions(steps=400, learning_rate=2e-3, lr_schedule="cosine")
    rates = [falling.rate(step) for step in range(1, 401)]
    assert rates[0] == pytest.approx(2e-3 / 30)
    assert 25 < rates.index(max(rates)) < 30
    assert max(rates) == pytest.approx(2e-3, rel=0.02)
    assert rates[200] == pytest.approx(1e-3)
    assert 0 < rates[-1] < 1e-7
    assert FinetuneOptions(steps=1, lr_schedule="cosine").rate(1) == 3e-5
    assert FinetuneOptions(learning_rate=2e-3).rate(77) == 2e-3


def test_a_run_with_a_falling_rate_keeps_its_steps_when_resumed() -> None:
    first = FinetuneOptions(lr_schedule="cosine")
    longer = FinetuneOptions(lr_schedule="cosine", steps=900)
    assert longer.differences(first.as_dict()) == ["steps is 900, was 500"]
    limited = FinetuneOptions(lr_schedule="cosine", max_seconds=60.0)
    assert limited.differences(first.as_dict()) == ["max_seconds is 60.0, was None"]


def test_a_resumed_run_may_only_change_how_long_it_runs() -> None:
    first = FinetuneOptions()
    longer = FinetuneOptions(steps=900, save_every=7, max_seconds=60.0)
    assert longer.differences(first.as_dict()) == []
    assert FinetuneOptions(seed=4).differences(first.as_dict()) == ["seed is 4, was 0"]


def test_the_bases_time_limit_holds_where_no_steps_are_given() -> None:
    limited = Defaults(train_steps=600, train_seconds=180.0)
    assert FinetuneOptions.for_base(limited).max_seconds == 180.0
    assert FinetuneOptions.for_base(limited, max_seconds=60.0).max_seconds == 60.0
    assert FinetuneOptions.for_base(limited, steps=600).max_seconds is None
    assert FinetuneOptions.for_base(Defaults()).max_seconds is None
