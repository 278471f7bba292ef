from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from posecrafter.errors import BaseModelError
from posecrafter.finetune import sources
from posecrafter.finetune.sources import find_component, read_weights, resolve, wanted_files


@pytest.fixture
def folder(tiny_base, tmp_path) -> Path:
    shutil.copytree(tiny_base / "controlnet", tmp_path / "controlnet")
    return tmp_path / "controlnet"


def refusal(name: str, folder: Path) -> BaseModelError:
    with pytest.raises(BaseModelError) as caught:
        find_component(name, folder.parent, folder)
    return caught.value


@pytest.mark.parametrize("name", sources.COMPONENTS)
def test_a_missing_component_is_named(tmp_path, name) -> None:
    error = refusal(name, tmp_path / name)
    assert error.code == "base-component-missing"
    assert name in error.message


@pytest.mark.parametrize("files", [["tokenizer_config.json"], ["tokenizer_config.json", "vocab.json"], ["merges.txt"]])
def test_a_tokenizer_without_its_words_is_missing(tiny_base, tmp_path, files) -> None:
    for file in files:
        shutil.copy(tiny_base / "tokenizer" / file, tmp_path)
    error = refusal("tokenizer", tmp_path)
    assert error.code == "base-component-missing"
    assert "lacks tokenizer.json, or vocab.json and merges.txt" in error.message


@pytest.mark.parametrize("files", [["tokenizer.json"], ["vocab.json", "merges.txt"]])
def test_a_tokenizer_is_complete_with_its_words_in_either_form(tiny_base, tmp_path, files) -> None:
    for file in files:
        shutil.copy(tiny_base / "tokenizer" / file, tmp_path)
    assert find_component("tokenizer", tmp_path, tmp_path) == tmp_path


def test_a_missing_controlnet_points_to_its_option(tmp_path) -> None:
    assert "--controlnet" in refusal("controlnet", tmp_path / "controlnet").message


def test_bin_weights_alone_are_refused_with_the_conversion(folder) -> None:
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")
    error = refusal("controlnet", folder)
    assert error.code == "base-not-safetensors"
    assert "safe_serialization=True" in error.message
    assert "ControlNetModel" in error.message


def test_the_conversion_that_is_advised_works(tiny_base, tmp_path) -> None:
    import re

    folder = tmp_path / "vae"
    shutil.copytree(tiny_base / "vae", folder)
    torch.save(load_file(folder / "diffusion_pytorch_model.safetensors"), folder / "diffusion_pytorch_model.bin")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    exec(re.search(r'python -c "(.*)"$', refusal("vae", folder).message)[1], {})
    assert find_component("vae", tmp_path, folder) == folder


def test_weights_of_no_kind_are_missing(folder) -> None:
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    assert refusal("controlnet", folder).code == "base-component-missing"


def test_the_fp16_variant_and_shards_are_read(folder) -> None:
    whole = folder / "diffusion_pytorch_model.safetensors"
    expected = load_file(whole)
    whole.rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    assert read_weights("controlnet", folder).keys() == expected.keys()
    (folder / "diffusion_pytorch_model.fp16.safetensors").unlink()
    names, half = sorted(expected), len(expected) // 2
    shards = {"a.safetensors": names[:half], "b.safetensors": names[half:]}
    for shard, inside in shards.items():
        save_file({name: expected[name] for name in inside}, folder / shard)
    index = {"weight_map": {name: shard for shard, inside in shards.items() for name in inside}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    read = read_weights("controlnet", folder)
    assert all(torch.equal(read[name], expected[name]) for name in names)
    (folder / "b.safetensors").unlink()
    assert "b.safetensors" in refusal("controlnet", folder).message


def test_a_torn_weight_file_is_refused(folder) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BaseModelError) as caught:
        read_weights("controlnet", folder)
    assert caught.value.code == "base-unreadable"


def test_only_what_is_needed_is_downloaded() -> None:
    repository = [
        "README.md",
        "v1-5-pruned.safetensors",
        "posecrafter.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "tokenizer/merges.txt",
        "safety_checker/model.safetensors",
    ]
    assert wanted_files("a/b", repository, ("unet", "vae", "tokenizer")) == [
        "posecrafter.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "tokenizer/merges.txt",
    ]
    controlnet = ["config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "images/a.json"]
    assert wanted_files("a/b", controlnet, ("",)) == controlnet[:2]


@pytest.mark.parametrize(
    ("files", "folder", "code"),
    [
        (["unet/config.json"], "controlnet", "base-component-missing"),
        (["unet/config.json", "unet/diffusion_pytorch_model.bin"], "unet", "base-not-safetensors"),
        (["config.json", "diffusion_pytorch_model.bin"], "", "base-not-safetensors"),
    ],
)
def test_a_repository_that_lacks_something_is_refused_before_the_download(files, folder, code) -> None:
    with pytest.raises(BaseModelError) as caught:
        wanted_files("a/b", files, (folder,))
    assert caught.value.code == code


def test_a_path_that_is_no_folder_and_no_hub_id_is_refused(tmp_path) -> None:
    for source in (str(tmp_path / "nothing"), "nothing", "a/b/c"):
        with pytest.raises(BaseModelError) as caught:
            resolve(source, {"unet": "unet"})
        assert caught.value.code == "base-missing"


def test_a_hub_id_without_a_network_says_what_to_do(monkeypatch, tmp_path) -> None:
    import huggingface_hub

    def unreachable(*arguments: object, **options: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(sources, "_cached", lambda source, components: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", unreachable)
    with pytest.raises(BaseModelError, match="pass its folder") as caught:
        resolve("somebody/some-model", {"unet": "unet"})
    assert caught.value.code == "base-offline"


def test_the_pocket_base_is_the_packages_own_folder() -> None:
    import posecrafter.pocket

    assert sources._pocket() == Path(posecrafter.pocket.__file__).parent / "weights"
