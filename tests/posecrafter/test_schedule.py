from __future__ import annotations

from typing import Any

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


@pytest.mark.parametrize("config", [SD15, {}])  # what a configuration does not name has diffusers' default
@pytest.mark.parametrize("steps", [1, 3, 25, 50, 1000])
def test_sampling_equals_diffusers_ddim(steps: int, config: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler.from_config({**config, "clip_sample": False})
    theirs.set_timesteps(steps)
    ours = Schedule.from_config(config).sampling(steps)
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


@pytest.mark.parametrize(("steps", "count"), [(25, 10), (25, 1), (50, 49), (500, 7)])
def test_fewer_sampling_steps_go_between_the_same_levels_in_equal_parts(steps: int, count: int) -> None:
    schedule = Schedule()
    all_steps, fewer = schedule.sampling(steps), schedule.sampling(steps, count)
    assert len(fewer) == count
    assert fewer[0].timestep == all_steps[0].timestep
    assert np.prod([step.a for step in fewer]) == pytest.approx(np.prod([step.a for step in all_steps]), rel=1e-12)
    top, end = fewer[0].timestep, all_steps[-1].timestep - 1000 // steps
    for index, step in enumerate(fewer):
        assert abs(step.timestep - (top - index * (top - end) / count)) <= 0.5
    assert fewer[0].c == 0
    assert schedule.sampling(steps, steps) == all_steps
    assert all(step.c == 0 for step in all_steps)


def test_fewer_steps_are_exact_where_eps_is_a_line_over_rho() -> None:
    """x / sqrt(abar) grows by the integral of eps over rho: of p + q rho, p rho + q rho^2 / 2. DDIM misses it."""
    schedule, (p, q) = Schedule(), (0.7, -0.3)

    def rho(timestep: int) -> float:
        level = float(schedule.alphas_cumprod[max(timestep, 0)])
        return ((1 - level) / level) ** 0.5

    def end_of(second_order: bool) -> tuple[float, float]:
        """The solver's x behind the first step, which knows no other eps, and the true one."""
        steps = schedule.sampling(25, 10)
        x = before = 0.0
        for step in steps[1:]:
            eps = p + q * rho(step.timestep)
            before = before or p + q * rho(steps[0].timestep)
            x = step.a * x + step.b * eps + (step.c * (eps - before) if second_order else 0.0)
            before = eps
        first, last = rho(steps[1].timestep), rho(0)
        clean = float(schedule.alphas_cumprod[0]) ** 0.5
        return x, clean * (p * (last - first) + q * (last**2 - first**2) / 2)

    found, true = end_of(second_order=True)
    assert found == pytest.approx(true, rel=1e-12)
    found, true = end_of(second_order=False)
    assert abs(found - true) > 0.01 * abs(true)


@pytest.mark.parametrize("count", [0, 26, -3])
def test_a_count_of_sampling_steps_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(RequestError) as caught:
        Schedule().sampling(25, count)
    assert caught.value.code == "sampling-steps-range"
    assert "between 1 and 25" in caught.value.message


def test_more_sampling_steps_than_there_are_levels_between_are_refused() -> None:
    schedule = Schedule(steps_offset=2)  # of 1000 steps the last two see the last timestep
    assert len(schedule.sampling(1000, 998)) == 998
    with pytest.raises(RequestError) as caught:
        schedule.sampling(1000, 999)
    assert caught.value.code == "sampling-steps-range"


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_out_of_range_are_refused(steps: int) -> None:
    with pytest.raises(RequestError) as caught:
        Schedule().sampling(steps)
    assert caught.value.code == "steps-range"
    assert str(steps) in caught.value.message


@pytest.mark.parametrize(
    "change",
    [
        {"prediction_type": "v_prediction"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.1, 0.2]},
        {"rescale_betas_zero_snr": True},
    ],
)
def test_schedules_that_the_method_does_not_cover_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BaseModelError) as caught:
        Schedule.from_config({**SD15, **change})
    assert caught.value.code == "base-scheduler"


def test_schedule_survives_its_dictionary() -> None:
    schedule = Schedule.from_config(SD15)
    assert Schedule(**schedule.as_dict()) == schedule
