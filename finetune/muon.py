"""Muon: steps of equal size in every direction of a weight matrix (Jordan et al. 2024), AdamW for everything else.

Adam scales every weight by itself; a matrix of correlated gradients then moves along a few directions only. Muon
replaces the momentum of a matrix by the nearest matrix with orthonormal rows. The pocket base's autoencoder, trained
from nothing, drew held-out people at 20.6 dB after 93 such steps, and at 20.4 dB after 526 of AdamW.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from posecrafter.finetune.base import Optimizer
    from posecrafter.finetune.second import SecondThread

Shape = tuple[int, int]
MOMENTUM = 0.95
BETAS = (0.9, 0.99)
COEFFICIENTS = ((8.0934, -23.6205, 17.4462), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526))
"""a, b, c of the odd polynomials ax + bx^3 + cx^5, one an iteration, each the best for the interval that the one before
it leaves (Amsel et al. 2025): they take singular values between 0.01 and 1 to between 0.73 and 1.27."""
MARGIN = 1.01
"""How far the square of the largest singular value may be rounded up in bf16; above 1 the polynomials rise steeply."""
LIKE_ADAM = 0.2
"""Root mean square of AdamW's usual update; scaled to it, both share a learning rate (Liu et al. 2025, section 2.2)."""


def build_optimizer(
    name: Optimizer,
    weights: Iterable[nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    precision: torch.dtype = torch.float32,
    second: SecondThread | None = None,
) -> torch.optim.Optimizer:
    """The optimizer called `name` over these weights. precision: of the network's products. second: see `Muon`."""
    if name == "muon":
        return Muon(weights, learning_rate, weight_decay, precision == torch.bfloat16, second)
    return torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay, fused=True)


class Muon(torch.optim.Optimizer):
    """Muon for matrices, for convolutions as [out, in*h*w] and for blocks of matrices [K, m, n]; AdamW for vectors.

    learning_rate: one for both, of AdamW's usual size. half: whether matrices are orthogonalised in bf16. second: a
    thread that does half of this. State of a matrix: "momentum"; of a vector: "exp_avg", "exp_avg_sq"; of both: "step".
    """

    def __init__(
        self,
        weights: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        half: bool = False,
        second: SecondThread | None = None,
    ) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})
        self._orthogonalise = orthogonalise_half if half else orthogonalise
        self._second = second

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient, which is used up: its memory is worked in. closure: None."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            rate, alike = group["lr"], defaultdict[Shape, list[nn.Parameter]](list)
            moved = [weight for weight in group["params"] if weight.grad is not None]
            for weight in moved:
                if weight.ndim >= 2:
                    rows, columns = weight.shape[1:] if weight.ndim == 3 else weight.flatten(1).shape
                    alike[rows, columns].append(weight)
            torch._foreach_mul_(moved, 1 - rate * group["weight_decay"])
            self._move_vectors([weight for weight in moved if weight.ndim < 2], rate)
            if self._second is None:
                self._move_matrices(alike, rate)
            else:
                mine, others = _halves(alike)
                self._second.start(self._move_matrices, others, rate)
                self._move_matrices(mine, rate)
                self._second.result()

    @torch.no_grad()
    def _move_matrices(self, alike: Mapping[Shape, list[nn.Parameter]], rate: float) -> None:
        """Matrices of one shape together: many of them are too small to keep a processor busy alone."""
        for shape, weights in alike.items():
            gradients = self._look_ahead(weights)
            ahead = [gradient.reshape(-1, *shape) for gradient in gradients]
            together = self._orthogonalise(torch.cat(ahead) if len(ahead) > 1 else ahead[0])
            updates = together.split([len(matrices) for matrices in ahead])
            torch._foreach_copy_(gradients, [u.reshape(w.shape) for w, u in zip(weights, updates, strict=True)])
            torch._foreach_add_(weights, gradients, alpha=-rate * LIKE_ADAM * max(shape) ** 0.5)

    def _look_ahead(self, weights: list[nn.Parameter]) -> list[Tensor]:
        """Nesterov's look ahead along the momenta, which it updates, in place of the gradients."""
        gradients = [weight.grad for weight in weights]
        for weight in weights:
            if "momentum" not in self.state[weight]:
                self.state[weight] |= {"momentum": torch.zeros_like(weight), "step": torch.tensor(0.0)}
            self.state[weight]["step"] += 1
        momenta = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_mul_(momenta, MOMENTUM)
        torch._foreach_add_(momenta, gradients)
        torch._foreach_add_(gradients, momenta, alpha=MOMENTUM)
        return gradients

    def _move_vectors(self, weights: list[nn.Parameter], rate: float) -> None:
        if not weights:
            return
        gradients, states = [weight.grad for weight in weights], [self.state[weight] for weight in weights]
        means = [state.setdefault("exp_avg", torch.zeros_like(w)) for w, state in zip(weights, states, strict=True)]
        squares = [
            state.setdefault("exp_avg_sq", torch.zeros_like(w)) for w, state in zip(weights, states, strict=True)
        ]
        steps = [state.setdefault("step", torch.tensor(0.0)).add_(1).item() for state in states]
        torch._foreach_lerp_(means, gradients, 1 - BETAS[0])
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - BETAS[1])
        roots = torch._foreach_sqrt(torch._foreach_div(squares, [1 - BETAS[1] ** step for step in steps]))
        torch._foreach_add_(roots, 1e-8)
        updates = torch._foreach_div(torch._foreach_div(means, [1 - BETAS[0] ** step for step in steps]), roots)
        torch._foreach_add_(weights, updates, alpha=-rate)


def _halves(alike: Mapping[Shape, list[nn.Parameter]]) -> tuple[dict[Shape, list[nn.Parameter]], ...]:
    """The same groups in two parts of about as many multiplications."""

    def cost(shape: Shape) -> int:
        less, more = sorted(shape)
        return sum(weight.numel() for weight in alike[shape]) * (4 * less * more + 7 * less**2) // more

    halves: tuple[dict[Shape, list[nn.Parameter]], ...] = ({}, {})
    costs = [0, 0]
    for shape in sorted(alike, key=cost, reverse=True):
        lighter = costs.index(min(costs))
        halves[lighter][shape] = alike[shape]
        costs[lighter] += cost(shape)
    return halves


def orthogonalise(matrices: Tensor) -> Tensor:
    """Matrices [..., m, n] with their singular values moved to about 1 (0.73 to 1.27), fp32.

    Newton-Schulz iterations X <- aX + b(XX')X + c(XX')(XX')X. They change X by a factor from the left that is a
    polynomial of G = XX', so they run on [min(m, n), min(m, n)] matrices and touch the wide one only twice. X starts
    divided by the fourth root of |GG|, the eighth root of the sum of its singular values' eighth powers: hardly more
    than the largest of them, where the usual |X| may be several times as much and cost an iteration.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.float().mT if tall else matrices.float()
    gram = wide @ wide.mT
    largest = gram.diagonal(dim1=-2, dim2=-1).amax(-1)[..., None, None].clamp_min(1e-30)
    gram /= largest  # squares of squares of small gradients would leave fp32's range
    square = gram @ gram
    bound = torch.linalg.matrix_norm(square)[..., None, None].sqrt() + 1e-7
    gram /= bound
    a, b, c = COEFFICIENTS[0]
    factor = step = _shifted(square.mul_(c / bound.square()).add_(gram, alpha=b), a)
    for a, b, c in COEFFICIENTS[1:]:
        gram = step @ gram @ step
        step = _shifted(gram @ _shifted(gram * c, b), a)
        factor = step @ factor
    result = (factor / (largest * bound).sqrt()) @ wide
    return result.mT if tall else result


def orthogonalise_half(matrices: Tensor) -> Tensor:
    """The same in bf16, for all of the pocket base's 1.5 times as fast with AVX512-BF16: matrices [K, m, n] -> bf16.

    A factor's small entries must not be lost beside the multiple of I in it, so that is added while products are
    accumulated, and G is computed anew from X after the first iteration, which raises its small eigenvalues above
    rounding. Of the singular values of a tuning's momenta one in ten thousand ends up above 1.3, the largest at 1.41;
    without the former at 2.0, without both at 4.3.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = (matrices.mT if tall else matrices).to(torch.bfloat16, copy=True)
    gram = wide @ wide.mT
    largest = gram.diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None].float().clamp_min(1e-30)
    gram = (gram / largest).bfloat16()
    square = gram @ gram
    bound = torch.linalg.matrix_norm(square.float())[:, None, None].sqrt() * MARGIN + 1e-7
    wide *= (largest * bound).rsqrt().bfloat16()
    (a, b, c), second, third = COEFFICIENTS
    factor = (square * (c / bound.square()) + gram * (b / bound)).bfloat16()
    wide = torch.baddbmm(wide, factor, wide, beta=a)
    gram = wide @ wide.mT
    a, b, c = second
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    left = torch.baddbmm(gram, factor, gram, beta=a)
    gram = torch.baddbmm(left, left, factor, beta=a)
    d, e, f = third
    last = torch.baddbmm(gram, gram, gram, beta=e, alpha=f)
    both = torch.baddbmm(factor, last, factor, beta=d).add_(last, alpha=a)
    wide = torch.baddbmm(wide, both, wide, beta=a * d)
    return wide.mT if tall else wide


def _shifted(matrices: Tensor, by: float) -> Tensor:
    """by * I added to each of these square matrices, in place: a copy of them all costs as much as a product."""
    matrices.diagonal(dim1=-2, dim2=-1).add_(by)
    return matrices
