from __future__ import annotations

import numpy as np
import pytest

from posecrafter.errors import BaseModelError, RequestError
from posecrafter.schedule import Schedule

SD15 = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "prediction_type": "epsilon",
}


@pytest.mark.parametrize("steps", [1, 3, 25, 50, 1000])
def test_sampling_equals_diffusers_ddim(steps: int) -> None:
    torch = pytest.importorskip("torch")
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler.from_config({**SD15, "clip_sample": False})
    theirs.set_timesteps(steps)
    ours = Schedule.from_config(SD15).sampling(steps)
    if steps < 1000:  # diffusers' offset runs past the last training step there; ours stays on it
        assert [step.timestep for step in ours] == theirs.timesteps.tolist()
    x, eps = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    for step in ours[1:]:
        expected = theirs.step(eps, step.timestep, x).prev_sample
        assert float((step.a * x + step.b * eps - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("steps", [1, 7, 25, 50])
def test_inversion_undoes_sampling_when_eps_does_not_depend_on_x(steps: int) -> None:
    schedule = Schedule()
    rng = np.random.default_rng(0)
    z, eps = rng.standard_normal(9), {s.timestep: rng.standard_normal(9) for s in schedule.sampling(steps)}
    x = z
    for step in (*schedule.inversion(steps), *schedule.sampling(steps)):
        x = step.a * x + step.b * eps[step.timestep]
    assert np.abs(x - z).max() < 1e-10


def test_inversion_starts_at_the_cleanest_level_and_ends_at_the_noisiest() -> None:
    schedule = Schedule()
    steps = schedule.inversion(50)
    assert [step.timestep for step in steps[:2]] == [1, 21]
    signal = float(np.prod([step.a for step in steps]))
    assert signal == pytest.approx((schedule.alphas_cumprod[981] / schedule.alphas_cumprod[0]) ** 0.5)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_out_of_range_are_refused(steps: int) -> None:
    with pytest.raises(RequestError) as caught:
        Schedule().sampling(steps)
    assert caught.value.code == "steps-range"
    assert str(steps) in caught.value.message


@pytest.mark.parametrize("change", [{"prediction_type": "v_prediction"}, {"beta_schedule": "squaredcos_cap_v2"}])
def test_schedules_that_the_method_does_not_cover_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(BaseModelError) as caught:
        Schedule.from_config({**SD15, **change})
    assert caught.value.code == "base-scheduler"


def test_schedule_survives_its_dictionary() -> None:
    schedule = Schedule.from_config(SD15)
    assert Schedule(**schedule.as_dict()) == schedule
