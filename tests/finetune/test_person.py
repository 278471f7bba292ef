from __future__ import annotations

import copy

import pytest
import torch

from posecrafter.errors import BaseModelError, TrainingError
from posecrafter.finetune.person import (
    FORMAT,
    Person,
    apply_decoder,
    apply_person,
    load_person,
    merged_state,
    save_person,
)
from posecrafter.finetune.trainable import choose_trained


def shaken(denoiser: torch.nn.Module, **options: object) -> dict[str, torch.Tensor]:
    """The denoiser's trained weights, moved a little in place: a person without the training."""
    trained = choose_trained(denoiser, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in trained.values():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.05)
    return {name: weight.detach().clone() for name, weight in trained.items()}


@pytest.mark.parametrize("scope", ["method", "all"])
def test_a_person_file_reproduces_the_tuned_network(base, draw, tmp_path, tolerance, scope) -> None:
    fresh, inputs = copy.deepcopy(base.denoiser), draw(3)
    save_person(tmp_path / "p.safetensors", Person(shaken(base.denoiser, scope=scope), "full", base.sha256))
    person = load_person(tmp_path / "p.safetensors")
    with torch.no_grad():
        before, tuned = fresh(**inputs), base.denoiser(**inputs)
        apply_person(fresh, person)
        assert (fresh(**inputs) - tuned).abs().max() < tolerance["half"] * tuned.abs().max()
    assert (before - tuned).abs().max() > 0.01
    assert (person.kind, person.base_sha256, person.rank) == ("full", base.sha256, 0)
    assert all(tensor.dtype == torch.float16 for tensor in person.tensors.values())


def test_a_merged_lora_equals_the_network_with_its_updates(base, draw, tolerance) -> None:
    fresh, inputs = copy.deepcopy(base.denoiser), draw(3)
    tensors = shaken(base.denoiser, scope="method", lora_rank=4)
    person = Person(tensors, "lora", base.sha256, rank=4, alpha=4.0)
    merged = merged_state(person, fresh.state_dict())
    assert not any("lora" in name for name in merged)
    with torch.no_grad():
        before = fresh(**inputs)
        apply_person(fresh, person)
        assert (fresh(**inputs) - base.denoiser(**inputs)).abs().max() < tolerance["merge"]
        assert (fresh(**inputs) - before).abs().max() > 0.01


def test_the_decoders_tensors_go_to_the_autoencoder_alone(base) -> None:
    name = "decoder.conv_out.bias"
    person = Person({f"vae.{name}": torch.full((3,), 0.25)}, "full", base.sha256)
    assert merged_state(person, base.denoiser.state_dict()) == {}
    apply_decoder(base.vae, person)
    assert base.vae.state_dict()[name].tolist() == [0.25] * 3


@pytest.mark.parametrize("name", ["unet.conv_out.bias", "unet.nothing.weight", "unet.nothing.lora_up.weight"])
def test_a_person_of_another_base_is_refused(base, name) -> None:
    person = Person({name: torch.zeros(5)}, "full", "0" * 64)
    with pytest.raises(BaseModelError, match=name) as caught:
        apply_person(base.denoiser, person)
    assert caught.value.code == "person-mismatch"


def test_equal_persons_are_equal_files(tmp_path) -> None:
    person = Person({"unet.b": torch.ones(3), "unet.a": torch.zeros(2, 2)}, "lora", "abc", rank=2, alpha=2.0)
    files = [tmp_path / f"{index}.safetensors" for index in range(8)]
    for file in files:
        save_person(file, person)
    assert len({file.read_bytes() for file in files}) == 1
    assert load_person(files[0]).rank == 2


def test_weights_that_are_not_finite_are_not_saved(tmp_path) -> None:
    path = tmp_path / "p.safetensors"
    with pytest.raises(TrainingError) as caught:
        save_person(path, Person({"unet.x": torch.tensor([1e9])}, "full", ""))
    assert caught.value.code == "nan-weights"
    assert not path.exists()


def test_a_file_of_another_format_is_refused(tmp_path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x08\x00\x00")
    codes = []
    for name in ("other", "torn", "absent"):
        with pytest.raises(TrainingError) as caught:
            load_person(tmp_path / f"{name}.safetensors")
        codes.append(caught.value.code)
    assert codes == ["person-format", "person-unreadable", "person-unreadable"]


@pytest.mark.parametrize("change", [{"base_sha256": None}, {"rank": None}, {"alpha": None}, {"rank": "many"}])
def test_a_person_that_does_not_tell_its_base_or_rank_is_refused(tmp_path, change) -> None:
    from safetensors.torch import save_file

    told = {"format": FORMAT, "kind": "lora", "rank": "2", "alpha": "2.0", "base_sha256": "abc", **change}
    metadata = {name: value for name, value in told.items() if value is not None}
    save_file({"x": torch.zeros(1)}, tmp_path / "p.safetensors", metadata=metadata)
    with pytest.raises(TrainingError) as caught:
        load_person(tmp_path / "p.safetensors")
    assert caught.value.code == "person-format"
