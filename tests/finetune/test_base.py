from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from posecrafter.errors import BaseModelError
from posecrafter.finetune.base import Defaults, load_base, read_base_defaults
from posecrafter.finetune.discriminator import Discriminator


@pytest.fixture
def folder(tiny_base, tmp_path) -> Path:
    """A copy of the tiny base that may be spoiled."""
    return shutil.copytree(tiny_base, tmp_path / "base")


def refusal(folder: Path, **options: object) -> BaseModelError:
    with pytest.raises(BaseModelError) as caught:
        load_base(folder, **options)
    return caught.value


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_base_brings_every_component_and_its_own_sizes(base) -> None:
    assert (base.latent_channels, base.factor, base.pose_style) == (6, 8, "v1.1")
    assert base.defaults == Defaults(width=64, height=64, steps=4, guidance=2.0, train_steps=20)
    assert base.schedule.as_dict()["steps_offset"] == 1
    assert base.encode_text(["one", "two"]).shape == (2, 16, 32)
    latents = torch.randn(2, 6, 9, 5)
    with torch.no_grad():
        assert base.decode_latents(latents).shape == (2, 3, 72, 40)
    assert not any(weight.requires_grad for weight in base.denoiser.parameters())


def test_text_is_padded_and_cut_to_the_same_length(base) -> None:
    short, long = base.encode_text(["a"]), base.encode_text(["a man " * 50])
    assert short.shape == long.shape == (1, 16, 32)
    assert torch.equal(base.encode_text(["a", "b"])[:1], short) or torch.allclose(
        base.encode_text(["a", "b"])[:1], short, atol=1e-6
    )


def test_the_fingerprint_depends_on_the_weights_and_not_on_the_place(tiny_base, folder, base) -> None:
    assert load_base(folder).sha256 == base.sha256
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["decoder.conv_out.bias"] += 1
    save_file(state, file)
    assert load_base(folder).sha256 != base.sha256


def test_a_base_may_bring_a_discriminator_that_no_person_depends_on(folder, base) -> None:
    assert base.discriminator is None
    Discriminator().save(folder)
    loaded = load_base(folder)
    assert loaded.discriminator is not None
    assert not any(weight.requires_grad for weight in loaded.discriminator.parameters())
    assert loaded.sha256 == base.sha256


def test_a_controlnet_may_come_from_another_folder(folder, tmp_path, base) -> None:
    (folder / "controlnet").rename(tmp_path / "elsewhere")
    assert refusal(folder).code == "base-component-missing"
    loaded = load_base(folder, controlnet=tmp_path / "elsewhere")
    assert loaded.sha256 == base.sha256
    assert loaded.controlnet == str(tmp_path / "elsewhere")


def test_the_precision_that_is_asked_for_holds_for_every_component(tiny_base) -> None:
    half = load_base(tiny_base, dtype=torch.float16)
    for module in (half.denoiser, half.vae, half.text_encoder):
        assert {weight.dtype for weight in module.parameters()} == {torch.float16}


def test_fp16_files_of_every_component_are_read(folder) -> None:
    for file in folder.glob("*/*.safetensors"):
        save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
        file.rename(file.with_suffix(".fp16.safetensors"))
    loaded = load_base(folder)
    assert {weight.dtype for weight in loaded.vae.parameters()} == {torch.float32}


def test_the_vaes_old_attention_names_are_understood(folder, base) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(file)
    renamed = dict(state)
    for new, name in old.items():
        for key in [key for key in renamed if f"attentions.0.{new}." in key]:
            renamed[key.replace(new, name)] = renamed.pop(key)
    assert renamed.keys() != state.keys()
    save_file(renamed, file)
    loaded = load_base(folder).vae.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in base.vae.state_dict().items())


def test_components_of_different_families_are_refused_with_both_numbers(folder) -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    shutil.rmtree(folder / "vae")
    vae.save_pretrained(folder / "vae")
    error = refusal(folder)
    assert error.code == "base-mismatch"
    assert "6" in error.message
    assert "4" in error.message


def test_configurations_that_are_not_json_are_refused(folder) -> None:
    (folder / "unet" / "config.json").write_text("{")
    assert refusal(folder).code == "base-unreadable"


def test_a_configuration_without_sizes_is_refused(folder) -> None:
    (folder / "unet" / "config.json").write_text("{}")
    assert refusal(folder).code == "base-unsupported"


@pytest.mark.parametrize("content", ["{", "[]", "{}", "", '{"added_tokens": [], "model": {"type": "none"}}'])
def test_a_damaged_tokenizer_is_refused_in_one_line(folder, content) -> None:
    (folder / "tokenizer" / "tokenizer.json").write_text(content)
    error = refusal(folder)
    assert error.code == "base-unreadable"
    assert str(folder / "tokenizer") in error.message
    assert "\n" not in error.message


def test_a_damaged_vocabulary_is_refused_in_one_line(folder) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()
    for name, content in (("merges.txt", "#version: 0.2\nq\n"), ("vocab.json", '{"a":')):
        (folder / "tokenizer" / name).write_text(content)
        error = refusal(folder)
        assert error.code == "base-unreadable"
        assert "\n" not in error.message


def test_a_tokenizer_of_another_vocabulary_is_refused_with_both_numbers(folder) -> None:
    file = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    words = content["model"]["vocab"]
    words["more"] = len(words)
    file.write_text(json.dumps(content))
    error = refusal(folder)
    assert error.code == "base-mismatch"
    assert "the tokenizer has words 515, the text encoder 514" in error.message


def test_a_tokenizer_longer_than_the_encoder_is_refused_and_one_without_a_length_has_the_encoders(folder, base) -> None:
    file = folder / "tokenizer" / "tokenizer_config.json"
    for length in (17, 0):
        rewrite(file, model_max_length=length)
        error = refusal(folder)
        assert error.code == "base-mismatch"
        assert f"model_max_length is {length}, the text encoder has 16 positions" in error.message
    content = json.loads(file.read_text())
    del content["model_max_length"]
    file.write_text(json.dumps(content))
    assert torch.equal(load_base(folder).encode_text(["a man"]), base.encode_text(["a man"]))


def test_a_scheduler_that_does_not_predict_noise_is_refused(folder) -> None:
    rewrite(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert refusal(folder).code == "base-scheduler"


def test_a_base_says_what_it_is_best_used_with(folder, tmp_path) -> None:
    file = folder / "posecrafter.json"
    file.write_text(
        json.dumps({"defaults": {"train": "all", "learning_rate": 1, "keep_mean": True}, "pose_style": "v1.1-small"})
    )
    assert read_base_defaults(folder) == Defaults(train="all", learning_rate=1, keep_mean=True)
    assert load_base(folder).pose_style == "v1.1-small"
    file.unlink()
    assert read_base_defaults(folder) == Defaults()


@pytest.mark.parametrize(
    "content",
    [
        {"defaults": {"stepps": 3}},
        {"defaults": {"steps": "3"}},
        {"defaults": {"steps": True}},
        {"defaults": {"keep_mean": 1}},
        {"defaults": {"train": "some"}},
        {"pose_style": "cubist"},
        [],
    ],
)
def test_defaults_that_mean_nothing_are_refused(folder, content) -> None:
    (folder / "posecrafter.json").write_text(json.dumps(content))
    with pytest.raises(BaseModelError, match=r"posecrafter\.json") as caught:
        read_base_defaults(folder)
    assert caught.value.code in ("base-defaults", "base-unreadable")
