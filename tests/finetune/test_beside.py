from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch

from posecrafter.finetune.beside import Beside
from posecrafter.finetune.network import VideoDenoiser
from posecrafter.finetune.second import SecondThread
from posecrafter.finetune.trainable import choose_trained

Gradients = dict[str, torch.Tensor]


def gradients(denoiser: VideoDenoiser, predict: Callable[..., torch.Tensor], backward: Callable, inputs) -> Gradients:
    denoiser.zero_grad()
    backward(predict(**inputs).square().mean())
    return {name: weight.grad.clone() for name, weight in denoiser.named_parameters() if weight.grad is not None}


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("scope", "rank"), [("all", None), ("method", None), ("method", 2)])
def test_gradients_beside_each_other_are_those_one_after_the_other(lively, draw, tolerance, scope, rank) -> None:
    choose_trained(lively, scope, rank)
    beside, inputs = Beside(lively, SecondThread()), draw(3)
    expected = gradients(lively, lively, torch.Tensor.backward, inputs)
    found = gradients(lively, beside, beside.backward, inputs)
    assert found.keys() == expected.keys()
    assert any(name.startswith("controlnet.") and gradient.any() for name, gradient in found.items())
    for name, gradient in found.items():
        assert (gradient - expected[name]).abs().max() < tolerance["network"], name
    with torch.no_grad():
        assert (beside(**inputs) - lively(**inputs)).abs().max() < tolerance["network"]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_threads_give_the_same_gradients_to_the_bit_every_time(lively, draw, checkpointing) -> None:
    choose_trained(lively, "all")
    for network in (lively.unet, lively.controlnet):
        network.gradient_checkpointing = checkpointing
    beside, inputs = Beside(lively, SecondThread()), draw(3)
    first = gradients(lively, beside, beside.backward, inputs)
    for _ in range(5):
        again = gradients(lively, beside, beside.backward, inputs)
        assert all(torch.equal(again[name], gradient) for name, gradient in first.items())


@pytest.mark.usefixtures("two_threads")
def test_a_controlnet_that_is_not_trained_needs_no_backward_pass(lively, draw) -> None:
    choose_trained(lively, "all")
    lively.controlnet.requires_grad_(False)
    beside = Beside(lively, SecondThread())
    found = gradients(lively, beside, beside.backward, draw(3))
    assert found
    assert all(name.startswith("unet.") for name in found)


@pytest.mark.usefixtures("two_threads")
def test_a_pass_leaves_no_tensors_behind(lively, draw) -> None:
    choose_trained(lively, "all")
    beside, inputs = Beside(lively, SecondThread()), draw(3)

    def alive() -> int:
        gradients(lively, beside, beside.backward, inputs)
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        counts = [alive() for _ in range(4)]
    finally:
        gc.enable()
    assert counts[1:] == counts[1:2] * 3
