"""Training stages: they learn, stop on time, and go on from a checkpoint."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from posecrafter.pocket.autoencoder import AutoencoderStage, build, colour_loss, gradient_loss
from posecrafter.pocket.decoder import DecoderStage
from posecrafter.pocket.training import Average, Clock, Pass, Run, averages, learn, muon, psnr


class Capturing(TorchDispatchMode):
    """Refuses tensors that an operator takes from anywhere but the device, as the capture of a CUDA graph does. A list
    of indices becomes one on the host and is copied out of sight: what no operator made is such a copy."""

    def __init__(self, known):
        super().__init__()
        self.known = {x.untyped_storage()._cdata: x for x in known}  # kept, so that no other takes its address

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, torch.Tensor) and (x.ndim or func is torch.ops.aten._to_copy.default):
                assert x.device.type == "meta", func
                assert x.untyped_storage()._cdata in self.known, func
        result = func(*args, **(kwargs or {}))
        made = (x.detach() for x in tree_leaves(result) if isinstance(x, torch.Tensor))
        self.known |= {x.untyped_storage()._cdata: x for x in made}
        return result


class Line:
    """A stage that fits one number."""

    learning_rate = 0.5

    def __init__(self):
        self.model = nn.Linear(1, 1, bias=False)
        self.models = {"line": self.model}

    def optimizer(self):
        return muon(self)

    def draw(self, random, fraction):
        return Pass((8,), {"x": torch.from_numpy(random.random((8, 1), np.float32))})

    def loss(self, kind, x):
        return ((self.model(x) - 3 * x) ** 2).mean()

    def sample(self, run, step, average):
        run.note(step, {"weight": self.model.weight.item()})


@pytest.mark.parametrize("workers", [1, 2])
def test_training_fits_a_line_and_goes_on_from_its_checkpoint(tmp_path, workers):
    device = torch.device("cpu")
    state = learn(Run(tmp_path, 0.025, device, resume=False), Line(), workers)
    again = Line()
    longer = learn(Run(tmp_path, 0.06, device, resume=True), again, workers)
    assert longer.step > state.step
    assert abs(again.model.weight.item() - 3) < 0.2
    fresh = nn.Linear(1, 1, bias=False)
    averages(tmp_path, {"line": fresh})
    assert abs(fresh.weight.item() - 3) < 0.5


def test_every_checkpoint_is_told_of_once_it_is_whole(tmp_path):
    steps = []

    def written():
        steps.append(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"])

    state = learn(Run(tmp_path, 0.03, torch.device("cpu"), resume=False, every_seconds=0.4), Line(), written=written)
    assert len(steps) > 2
    assert sorted(set(steps)) == steps
    assert steps[-1] == state.step


def test_the_average_of_constant_weights_is_those_weights():
    model = nn.Linear(3, 2)
    average = Average({"line": model})
    for step in range(5):
        average.update({"line": model}, step)
    other = nn.Linear(3, 2)
    average.copy_into({"line": other})
    assert torch.allclose(other.weight, model.weight, atol=1e-6)


def test_the_learning_rate_warms_up_and_falls():
    assert Clock(1, 0).rate(0, floor=0.02) < 0.05
    assert Clock(1, 0).rate(1000, floor=0.02) == pytest.approx(1, abs=1e-3)
    assert Clock(1, 59.9).rate(1000, floor=0.02) < 0.05


def test_image_losses_are_zero_for_equal_pictures_and_see_edges_and_hues():
    picture = torch.rand(1, 3, 16, 16)
    assert float(gradient_loss(picture, picture)) == 0
    assert float(gradient_loss(picture, picture + 0.5)) == pytest.approx(0, abs=1e-6)
    assert float(colour_loss(picture, picture)) == 0
    tinted = picture + torch.tensor([0.3, 0.0, -0.3])[:, None, None]
    assert float(colour_loss(picture, tinted)) > 0.2


def test_psnr_of_a_known_error():
    truth = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(truth, truth + 5) == pytest.approx(10 * np.log10(255**2 / 25))


def test_the_decoder_stage_leaves_the_encoder_alone_and_both_others_learn():
    pictures = np.random.default_rng(0).integers(0, 255, (4, 128, 128, 3), dtype=np.uint8)
    stage = DecoderStage([(pictures, 1.0)], pictures, 1, build())
    before = {name: value.clone() for name, value in stage.autoencoder.state_dict().items()}
    optimizer, scores = stage.optimizer(), copy.deepcopy(stage.discriminator)
    for fraction in (0.0, 0.9):
        drawn = stage.draw(np.random.default_rng(0), fraction)
        loss = stage.loss(drawn.kind, **drawn.tensors)
        assert torch.isfinite(loss)
        loss.backward()
        optimizer.step()
    moved = {name for name, value in stage.autoencoder.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if not name.startswith(("encoder.", "quant_conv."))}
    assert not torch.equal(scores.score.weight, stage.discriminator.score.weight)


def test_the_autoencoder_stage_gives_a_finite_loss_at_both_sizes():
    pictures = np.random.default_rng(0).integers(0, 255, (4, 128, 128, 3), dtype=np.uint8)
    stage = AutoencoderStage([(pictures, 1.0)], pictures, 1, torch.device("cpu"))
    for fraction in (0.0, 0.9):
        drawn = stage.draw(np.random.default_rng(0), fraction)
        assert torch.isfinite(stage.loss(drawn.kind, **drawn.tensors))
    latents = build().encode(torch.zeros(1, 3, 128, 128)).latent_dist.mode()
    assert latents.shape == (1, 16, 16, 16)


@pytest.mark.parametrize("kind", [AutoencoderStage, DecoderStage])
def test_a_pass_takes_nothing_from_the_host_so_that_it_can_be_captured(kind, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no such device
    pictures, meta = np.zeros((4, 128, 128, 3), np.uint8), torch.device("meta")
    last = meta if kind is AutoencoderStage else build().to(meta)
    stage = kind([(pictures, 1.0)], pictures, 1, last)
    weights = [x for model in (stage.autoencoder, *stage.models.values()) for x in model.parameters()]
    for fraction in (0.0, 0.9):
        drawn = stage.draw(np.random.default_rng(0), fraction)
        tensors = {name: x.to(meta) for name, x in drawn.tensors.items()}
        with Capturing([*weights, *tensors.values()]):
            loss = stage.loss(drawn.kind, **tensors)
        loss.backward()
    assert all(weight.grad is not None for weight in weights if weight.requires_grad)
