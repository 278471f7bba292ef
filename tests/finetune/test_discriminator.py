from __future__ import annotations

import pytest
import torch
from torch import nn

from posecrafter.errors import BaseModelError
from posecrafter.finetune.discriminator import FILE, FOLDER, Discriminator


@pytest.fixture
def discriminator() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator()


def pictures(seed: int, contrast: float = 1.0) -> torch.Tensor:
    return contrast * (2 * torch.rand(4, 3, 32, 40, generator=torch.Generator().manual_seed(seed)) - 1)


def test_it_scores_patches_of_eight_pixels_a_side(discriminator) -> None:
    scores, features = discriminator(pictures(0))
    assert scores.shape == (4, 1, 4, 5)
    assert [list(feature.shape[1:]) for feature in features][-1] == [128, 4, 5]


def test_it_learns_to_tell_soft_pictures_from_true_ones(discriminator) -> None:
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=1e-3)
    for step in range(40):
        loss = discriminator.own_loss(pictures(step, 0.3), pictures(100 + step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert (discriminator(pictures(999))[0] > 0).float().mean() > 0.9
        assert (discriminator(pictures(998, 0.3))[0] < 0).float().mean() > 0.9


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_decoders_gradient_is_the_errors_and_so_many_times_the_scores(discriminator, weight) -> None:
    last = nn.Parameter(torch.full((3, 1, 1), 0.8))
    discriminator.score.weight.data *= 1000  # fresh, it hardly minds what it sees, and its gradient is at the bound
    seen, truth = pictures(1), pictures(2)

    def parts() -> tuple[torch.Tensor, torch.Tensor]:
        drawn = seen * last
        return drawn, (drawn - truth).abs().mean()

    drawn, error = parts()
    with_scores = discriminator.decoder_loss(drawn, truth, error, last, weight)
    whole = torch.autograd.grad(with_scores, last)[0]
    drawn, error = parts()
    without = torch.autograd.grad(discriminator.decoder_loss(drawn, truth, error, last, 0.0), last)[0]
    own = torch.autograd.grad(parts()[1], last)[0]
    assert (whole - without).norm() == pytest.approx(weight * own.norm().item(), rel=1e-3)


def test_the_slope_is_that_of_the_scores_and_can_be_learned(discriminator) -> None:
    seen = pictures(3)[:1]
    slope = discriminator.slope(seen)
    slope.backward()
    assert all(layer.weight.grad is not None for layer in discriminator.layers)
    seen = seen.double().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator.double()(seen)[0].sum(), seen)
    assert slope.item() == pytest.approx(gradient.square().sum(dim=1).mean().item(), rel=1e-4)


def test_neither_loss_has_a_gradient_for_the_other(discriminator) -> None:
    last = nn.Parameter(torch.ones(3, 1, 1))
    drawn, truth = pictures(1) * last, pictures(2)
    discriminator.decoder_loss(drawn, truth, (drawn - truth).abs().mean(), last, 1.0).backward()
    assert last.grad is not None
    assert all(weight.grad is None for weight in discriminator.parameters())
    last.grad = None
    discriminator.own_loss(pictures(1) * last, truth).backward()
    assert last.grad is None
    assert all(weight.grad is not None for weight in discriminator.parameters())


def test_a_base_keeps_it_in_half_precision_and_needs_none(discriminator, tmp_path) -> None:
    assert Discriminator.load(tmp_path) is None
    discriminator.save(tmp_path)
    loaded = Discriminator.load(tmp_path)
    assert loaded is not None
    for name, weight in discriminator.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.half().float())


def test_a_damaged_one_is_refused_in_one_line(discriminator, tmp_path) -> None:
    discriminator.save(tmp_path)
    path = tmp_path / FOLDER / FILE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BaseModelError) as caught:
        Discriminator.load(tmp_path)
    assert caught.value.code == "base-unreadable"
    assert "\n" not in str(caught.value)
