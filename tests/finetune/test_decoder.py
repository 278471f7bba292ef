from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from posecrafter.errors import TrainingError
from posecrafter.files import read_json
from posecrafter.finetune.data import Clip, frame_clip, prepare_clip
from posecrafter.finetune.decoder import adapt_decoder
from posecrafter.finetune.discriminator import Discriminator
from posecrafter.finetune.person import apply_decoder, load_person
from posecrafter.finetune.train import finetune


@pytest.fixture
def ready(base, clip) -> Clip:
    return prepare_clip(*frame_clip(*clip, 64, 64), "", base)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_tuned_decoder_draws_the_training_frames_better(base, ready, options, precision) -> None:
    encoder = copy.deepcopy(base.vae.encoder.state_dict())
    adapted = adapt_decoder(base, ready, replace(options, adapt_decoder=15, precision=precision))
    assert adapted.psnr_after > adapted.psnr_before + 1
    assert all(torch.equal(encoder[name], tensor) for name, tensor in base.vae.encoder.state_dict().items())
    assert adapted.tensors.keys() == {f"vae.decoder.{name}" for name, _ in base.vae.decoder.named_parameters()}
    assert {weight.dtype for weight in base.vae.parameters()} == {torch.float32}


def test_with_a_discriminator_the_decoder_answers_to_it_too_and_to_more_of_it_more(base, ready, options) -> None:
    def drawn(weight: float) -> torch.Tensor:
        torch.manual_seed(0)
        tuned = replace(copy.deepcopy(base), discriminator=Discriminator())
        before = copy.deepcopy(tuned.discriminator.state_dict())
        adapt_decoder(tuned, ready, replace(options, adapt_decoder=12, discriminator_weight=weight, precision="fp32"))
        assert all(torch.equal(before[name], now) for name, now in tuned.discriminator.state_dict().items())
        with torch.no_grad():
            return tuned.decode_latents(ready.latents)

    without, little, much = drawn(0.0), drawn(0.1), drawn(1.0)
    assert 0 < (little - without).square().mean() < (much - without).square().mean()


def test_a_base_without_a_discriminator_refuses_a_weight_for_it_before_anything(base, clip, options, tmp_path) -> None:
    wanting = replace(options, adapt_decoder=2, discriminator_weight=0.3)
    with pytest.raises(TrainingError, match="--discriminator-weight 0") as caught:
        finetune(*clip, base, tmp_path / "run", wanting)
    assert caught.value.code == "discriminator-missing"
    assert not (tmp_path / "run").exists()


def test_the_person_file_carries_the_decoder(base, clip, options, tmp_path, tolerance) -> None:
    tuned = copy.deepcopy(base)
    out = finetune(*clip, tuned, tmp_path / "run", replace(options, steps=1, adapt_decoder=3)).out
    apply_decoder(base.vae, load_person(out / "person.safetensors"))
    loaded = base.vae.state_dict()
    for name, expected in tuned.vae.state_dict().items():
        assert (loaded[name] - expected).abs().max() < tolerance["half"] * expected.abs().max() + 1e-7
    record = read_json(out / "run.json")["decoder_psnr"]
    assert record["after"] > record["before"]


def test_stopping_in_the_decoder_keeps_the_trained_network_for_a_resume(base, clip, options, tmp_path) -> None:
    options = replace(options, steps=2, adapt_decoder=4)
    straight = finetune(*clip, copy.deepcopy(base), tmp_path / "straight", options).out
    stage: list[str] = []
    with pytest.raises(TrainingError, match="decoder") as caught:
        finetune(
            *clip,
            copy.deepcopy(base),
            tmp_path / "stopped",
            options,
            progress=lambda name, done, total, detail="": stage.append(name),
            cancel=lambda: "adapt decoder" in stage,
        )
    assert caught.value.code == "cancelled"
    resumed = finetune(*clip, base, tmp_path / "stopped", options, resume=True).out
    files = [(out / "person.safetensors").read_bytes() for out in (straight, resumed)]
    assert files[0] == files[1]
