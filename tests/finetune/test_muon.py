from __future__ import annotations

import pytest
import torch
from torch import nn

from posecrafter.finetune.muon import (
    BETAS,
    COEFFICIENTS,
    Muon,
    build_optimizer,
    orthogonalise,
    orthogonalise_half,
)
from posecrafter.finetune.second import SecondThread


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (1, 9), (9, 1)])
def test_an_orthogonalised_matrix_has_singular_values_near_one_and_the_directions_it_had(shape) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) * 1e-3
    result = orthogonalise(matrix)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.72
    assert values.max() < 1.28
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(left @ torch.diag(torch.diag(left.T @ result @ right.T)) @ right, result)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_singular_values_a_hundredth_of_the_largest_are_moved_too_whatever_the_scale(scale: float) -> None:
    torch.manual_seed(5)
    left, right = torch.linalg.qr(torch.randn(24, 24))[0], torch.linalg.qr(torch.randn(60, 24))[0]
    # With one large value and many small ones the bound on the largest is tight.
    values = torch.linalg.svdvals(orthogonalise(scale * left @ torch.diag(torch.logspace(-2, 0, 24)) @ right.T))
    assert values.min() > 0.65
    assert values.max() < 1.28


def test_small_gram_matrices_give_what_iterating_on_the_matrix_gives() -> None:
    torch.manual_seed(1)
    matrix = torch.randn(12, 50, dtype=torch.float64)
    expected = matrix / torch.linalg.svdvals(matrix).pow(8).sum().pow(1 / 8)
    for a, b, c in COEFFICIENTS:
        gram = expected @ expected.T
        expected = a * expected + (b * gram + c * gram @ gram) @ expected
    torch.testing.assert_close(orthogonalise(matrix.float()), expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(96, 96), (64, 288), (288, 64)])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_in_bf16_singular_values_end_up_near_one_and_directions_where_fp32_has_them(shape, scale) -> None:
    torch.manual_seed(6)
    less = min(shape)
    left, right = torch.linalg.qr(torch.randn(shape[0], less))[0], torch.linalg.qr(torch.randn(shape[1], less))[0]
    matrix = scale * left @ torch.diag(torch.logspace(-2, 0, less)) @ right.T  # as steep as a momentum's
    result, exact = orthogonalise_half(matrix[None])[0].float(), orthogonalise(matrix)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6
    assert values.max() < 1.35
    assert (result * exact).sum() > 0.995 * result.norm() * exact.norm()


def test_in_bf16_a_matrix_of_zeros_stays_one_and_leaves_its_neighbours_alone() -> None:
    torch.manual_seed(7)
    matrix, other = torch.randn(2, 9, 5)
    both = orthogonalise_half(torch.stack([torch.zeros(9, 5), matrix]))
    assert both[0].abs().max() == 0
    assert torch.equal(both[1], orthogonalise_half(torch.stack([other, matrix]))[1])


def test_a_block_of_matrices_moves_as_its_matrices_do() -> None:
    torch.manual_seed(8)
    gradients = torch.randn(3, 6, 5)
    block = nn.Parameter(torch.zeros(3, 6, 5))
    block.grad = gradients.clone()
    Muon([block], lr=0.1).step()
    for part, gradient in zip(block, gradients, strict=True):
        weight = nn.Parameter(torch.zeros(6, 5))
        weight.grad = gradient.clone()
        Muon([weight], lr=0.1).step()
        torch.testing.assert_close(part, weight)


@pytest.mark.usefixtures("two_threads")
def test_a_second_thread_moves_the_same_weights_by_as_much() -> None:
    torch.manual_seed(9)
    gradients = [torch.randn(shape) for shape in ((3, 6, 5), (2, 4, 4), (1, 9, 3), (7,))]

    def stepped(second: SecondThread | None) -> list[nn.Parameter]:
        weights = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
        muon = Muon(weights, lr=0.1, second=second)
        for _ in range(3):
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient.clone()
            muon.step()
        return weights

    for one, other in zip(stepped(None), stepped(SecondThread()), strict=True):
        assert one.any()
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (4, 3, 1, 3)])
def test_a_matrix_moves_along_its_orthogonalised_nesterov_momentum_as_far_as_adamw_moves_it(shape) -> None:
    torch.manual_seed(10)
    weight = nn.Parameter(torch.randn(shape))
    expected, momentum = weight.detach().flatten(1).clone(), torch.zeros(4, 9).reshape(weight.flatten(1).shape)
    muon = Muon([weight], lr=0.1, weight_decay=0.3)
    for _ in range(3):
        gradient = torch.randn(shape)
        weight.grad = gradient.clone()
        muon.step()
        momentum = 0.95 * momentum + gradient.flatten(1)
        direction = orthogonalise(gradient.flatten(1) + 0.95 * momentum)
        # Entries of a matrix with orthonormal rows have a root mean square of 1 / sqrt(9); AdamW's usual one is 0.2.
        expected = (1 - 0.1 * 0.3) * expected - 0.1 * 0.2 * 9**0.5 * direction
    torch.testing.assert_close(weight.flatten(1), expected)
    assert muon.state[weight]["step"] == 3


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_matrices_are_orthogonalised_in_the_precision_of_the_networks_products(precision) -> None:
    torch.manual_seed(11)
    gradient = torch.randn(6, 9)
    weight = nn.Parameter(torch.zeros(1, 6, 9))
    weight.grad = gradient[None].clone()
    build_optimizer("muon", [weight], 0.1, 0.0, precision).step()
    # Nesterov's first step looks ahead along the gradient itself: 1 + 0.95 of it.
    exact, half = (turn((1.95 * gradient)[None]).float() for turn in (orthogonalise, orthogonalise_half))
    to_exact, to_half = ((weight / (-0.1 * 0.2 * 9**0.5) - one).norm() for one in (exact, half))
    assert to_half < 0.2 * to_exact if precision == torch.bfloat16 else to_exact < 0.2 * to_half


def test_weights_of_one_shape_do_not_mix() -> None:
    torch.manual_seed(4)
    gradients = [torch.randn(6, 2, 3), torch.randn(6, 6), torch.randn(3, 6)]

    def stepped(chosen: list[int]) -> list[nn.Parameter]:
        weights = [nn.Parameter(torch.zeros_like(gradients[index])) for index in chosen]
        for weight, index in zip(weights, chosen, strict=True):
            weight.grad = gradients[index].clone()
        Muon(weights, lr=0.1).step()
        return weights

    together = stepped([0, 1, 2])
    alone = [stepped([index])[0] for index in range(3)]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other)


def test_a_matrix_of_zeros_stays_one() -> None:
    assert orthogonalise(torch.zeros(3, 5)).abs().max() == 0


def test_vectors_are_updated_as_by_adamw() -> None:
    torch.manual_seed(2)
    ours, theirs = nn.Parameter(torch.ones(7)), nn.Parameter(torch.ones(7))
    muon = Muon([ours], lr=0.01, weight_decay=0.1)
    adamw = torch.optim.AdamW([theirs], lr=0.01, betas=BETAS, weight_decay=0.1)
    for _ in range(5):
        gradient = torch.randn(7)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        muon.step()
        adamw.step()
    torch.testing.assert_close(ours, theirs)


def test_correlated_inputs_are_learned_in_fewer_steps_than_by_adamw() -> None:
    """Each at the best of five rates."""

    def remaining(name: str, rate: float) -> float:
        torch.manual_seed(3)
        inputs = torch.randn(512, 32) @ (torch.randn(32, 32) @ torch.diag(torch.logspace(0, -1.5, 32)))
        truth, weight = torch.randn(32, 32), nn.Parameter(torch.zeros(32, 32))
        optimizer = build_optimizer(name, [weight], rate, 0.0)
        for step in range(150):
            optimizer.param_groups[0]["lr"] = rate * (1 - step / 150)
            loss = (inputs @ (weight - truth)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    rates = (0.02, 0.05, 0.1, 0.2, 0.5)
    best = {name: min(remaining(name, rate) for rate in rates) for name in ("muon", "adamw")}
    assert best["muon"] < 0.5 * best["adamw"], best
