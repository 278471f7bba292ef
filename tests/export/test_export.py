from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from posecrafter.errors import ExportError, PoseCrafterError
from posecrafter.export.describe import describe
from posecrafter.export.export import ExportOptions, export_bundle, exported_copy, write_tokenizer
from posecrafter.export.graphs import Graph
from posecrafter.export.parity import relative_l2
from posecrafter.export.profiles import make_profiles
from posecrafter.export.reference import open_reference
from posecrafter.export.run import Run
from posecrafter.export.tolerances import BF16, TOLERANCES
from posecrafter.files import read_json, write_json
from posecrafter.finetune.base import Base
from posecrafter.finetune.network import VideoUNet
from posecrafter.manifest import Manifest
from posecrafter.runtime import Bundle, Request, Session


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run, to spoil."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def refusal(*arguments: Any, **options: Any) -> PoseCrafterError:
    with pytest.raises(PoseCrafterError) as caught:
        export_bundle(*arguments, **options)
    return caught.value


def test_a_bundle_holds_the_files_of_the_design_and_verifies(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert set(bundle.manifest.files) == {
        "graphs/pose_encoder.onnx", "graphs/text_encoder.onnx", "graphs/tokenizer.json",
        *(f"graphs/{name}{end}" for name in ("denoiser", "vae_decoder") for end in (".onnx", ".cpu.onnx", ".weights")),
        *(f"graphs/{name}.layers" for name in ("pose_encoder", "denoiser", "vae_decoder", "text_encoder")),
        "person/person.safetensors", "person/poses.json", "person/latents.safetensors", "person/text.safetensors",
    }  # fmt: skip
    assert bundle.manifest.precision == "fp32"
    assert 33 in bundle.manifest.frames


def test_the_manifest_holds_parity_figures_within_their_bounds(tiny_bundle: Path) -> None:
    parity = Manifest.read(tiny_bundle).parity
    graphs = ["pose_encoder", "denoiser", "denoiser, portable", "vae_decoder", "vae_decoder, portable", "text_encoder"]
    assert max(parity[name] for name in graphs) <= parity["bound_graph"] == TOLERANCES["fp32"].graph == 1e-4
    assert parity["latents"] <= parity["bound_latents"] == TOLERANCES["fp32"].latents == 1e-3
    assert parity["bound_bf16"] == BF16 == 2e-2


def test_the_manifest_names_no_local_path(tiny_bundle: Path, tiny_base: Path) -> None:
    text = (tiny_bundle / "manifest.json").read_text()
    assert str(tiny_base.parent) not in text
    assert str(Path.home()) not in text


def test_a_bundle_renders_what_the_reference_renders(tiny_run: Path, tiny_bundle: Path) -> None:
    poses = Bundle.open(tiny_bundle).poses[[0, 2, 4]]
    request = Request(poses=poses, steps=3)
    with Session.open(tiny_bundle, "onnxruntime", threads=1) as session, open_reference(tiny_run) as reference:
        found, expected = session.render(request).frames, reference.render(request).frames
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_the_stored_text_is_the_base_models(tiny_bundle: Path, tuned: Base) -> None:
    stored = load_file(tiny_bundle / "person/text.safetensors")
    empty, prompt = tuned.encode_text(["", "a person"]).numpy()
    np.testing.assert_array_equal(stored["empty"], empty)
    np.testing.assert_array_equal(stored["prompt"], prompt)


def test_folding_leaves_no_conv_temp_and_changes_nothing(
    graphs: dict[str, Graph], run_torch: Any, tolerance: dict[str, float]
) -> None:
    graph = graphs["denoiser"]
    folded = exported_copy(graph.module, ExportOptions())
    unet = next(module for module in folded.modules() if isinstance(module, VideoUNet))
    assert all(block.conv_temp is None for block in unet.blocks)
    assert any("conv_temp" in name for name in graph.module.state_dict())
    inputs = graph.example({"frames": 3, "prompts": 2, "h": 8, "w": 9})
    for ours, theirs in zip(run_torch(folded, inputs), run_torch(graph.module, inputs), strict=True):
        assert relative_l2(ours, theirs) < tolerance["rewrite"]


@pytest.mark.usefixtures("no_tracing")
def test_graphs_that_differ_from_pytorch_are_refused_and_nothing_stays(run: Path, tmp_path: Path) -> None:
    from safetensors.torch import safe_open, save_file

    path = run / "person.safetensors"
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(name for name in tensors if name.startswith("unet.up_blocks") and "attn1" in name)
    tensors[name] = tensors[name] + 0.05
    save_file(tensors, path, metadata=metadata)
    before = sorted(tmp_path.iterdir())
    error = refusal(run, tmp_path / "bundle")
    assert error.code == "parity"
    assert "denoiser" in error.message
    assert "1e-04" in error.message
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("no_tracing")
def test_a_failed_export_leaves_the_older_bundle_as_it_was(
    run: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Manifest, "write", full)
    error = refusal(run, out, overwrite=True)
    assert error.code == "disk-full"
    assert Bundle.open(out).manifest == Manifest.read(tiny_bundle)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "run"]


@pytest.mark.usefixtures("no_tracing")
def test_overwrite_replaces_a_bundle_and_the_same_run_gives_the_same_manifest(
    run: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (out / "stray").write_text("left over")
    assert export_bundle(run, out, overwrite=True) == out
    assert not (out / "stray").exists()
    assert (out / "manifest.json").read_bytes() == (tiny_bundle / "manifest.json").read_bytes()


def test_an_existing_folder_is_not_replaced_unasked(run: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    assert refusal(run, tiny_bundle).code == "bundle-exists"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    assert refusal(run, tmp_path / "home", overwrite=True).code == "bundle-exists"
    assert (tmp_path / "home" / "letter.txt").exists()


def test_cancelling_leaves_nothing(run: Path, tmp_path: Path) -> None:
    error = refusal(run, tmp_path / "bundle", cancel=lambda: True)
    assert error.code == "cancelled"
    assert not (tmp_path / "bundle").exists()


def test_another_base_than_the_runs_is_refused(run: Path, tmp_path: Path, make_tiny_base: Callable[..., Path]) -> None:
    other = make_tiny_base(tmp_path / "other", seed=1)
    error = refusal(run, tmp_path / "bundle", base=other)
    assert error.code == "base-differs"
    assert "--base" in error.message
    assert not (tmp_path / "bundle").exists()


def test_a_run_that_is_missing_unfinished_or_foreign_is_refused(run: Path, tmp_path: Path) -> None:
    assert refusal(tmp_path / "nothing", tmp_path / "bundle").code == "run-missing"
    (run / "latents.safetensors").unlink()
    assert refusal(run, tmp_path / "bundle").code == "run-incomplete"
    write_json(run / "run.json", {**read_json(run / "run.json"), "format": "posecrafter-run-2"})
    assert refusal(run, tmp_path / "bundle").code == "run-format"
    (run / "run.json").write_text("{")
    assert refusal(run, tmp_path / "bundle").code == "run-format"


@pytest.mark.parametrize("record", ["[]", "3", "null", '"run"'])
def test_a_record_that_is_no_object_is_refused(record: str, run: Path) -> None:
    (run / "run.json").write_text(record)
    with pytest.raises(ExportError) as caught:
        Run.read(run)
    assert caught.value.code == "run-format"


@pytest.mark.parametrize(
    "name", ["prompt", "base", "width", "height", "fps", "pose_style", "steps", "base.source", "base.sha256"]
)
@pytest.mark.parametrize("spoil", [lambda record, key: record.pop(key), lambda record, key: record.update({key: []})])
def test_a_record_without_what_an_export_takes_is_refused_by_name(name: str, spoil: Any, run: Path) -> None:
    record = read_json(run / "run.json")
    spoil(record["base"] if "." in name else record, name.removeprefix("base."))
    write_json(run / "run.json", record)
    with pytest.raises(ExportError) as caught:
        Run.read(run)
    assert caught.value.code == "run-format"
    assert f" {name}" in caught.value.message
    assert "\n" not in caught.value.message


def test_the_range_holds_a_run_larger_than_the_longest_side(run: Path) -> None:
    write_json(run / "run.json", {**read_json(run / "run.json"), "width": 1280, "height": 720})
    tuned = Run.read(run)
    manifest = describe(tuned, tuned.load(), ExportOptions())
    assert (manifest.defaults.width, manifest.defaults.height) == (1280, 720)
    assert (manifest.width.max, manifest.height.max) == (1280, 1280)
    assert make_profiles(manifest, "pose_encoder")[0].sizes["width"] == (1280, 1280, 1280)


@pytest.mark.parametrize(
    "options", [{"precision": "int4"}, {"max_frames": 1}, {"max_side": 64}, {"max_prompts": 1}, {"steps": 0}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ExportError) as caught:
        ExportOptions(**options)
    assert caught.value.code == "options-range"
    assert next(iter(options)) in caught.value.message


@pytest.mark.parametrize("prompt", ["", "a person", "Ünïcode 😀 und mehr", "words " * 40, "  two  spaces "])
def test_the_tokenizer_file_alone_splits_as_the_base_does(prompt: str, tuned: Base, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    write_tokenizer(tmp_path / "tokenizer.json", tuned.tokenizer, [prompt])
    ids = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(prompt).ids
    expected = tuned.tokenizer(prompt, padding="max_length", truncation=True, max_length=16).input_ids
    assert ids == expected
    assert len(ids) == 16


def test_a_merged_low_rank_person_equals_the_unmerged_one(
    tuned: Base, run: Path, run_torch: Any, graphs: dict[str, Graph], tolerance: dict[str, float]
) -> None:
    from posecrafter.finetune.base import load_base
    from posecrafter.finetune.person import Person, save_person
    from posecrafter.finetune.trainable import choose_trained

    base = load_base(tuned.source)
    trained = choose_trained(base.denoiser, "method", lora_rank=4, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in trained.values():
            # Halves lose nothing in a person file.
            parameter.copy_((torch.randn(parameter.shape, generator=generator) * 0.2).half().float())
    save_person(run / "person.safetensors", Person(trained, "lora", base.sha256, rank=4, alpha=4.0))
    merged = Run.read(run).load()
    inputs = graphs["denoiser"].example({"frames": 3, "prompts": 2, "h": 8, "w": 8})
    names = ("x", "timestep", "text", "pose_features", "control_scale")
    chosen = {name: inputs[name] for name in names}
    (found,), (expected,) = run_torch(merged.denoiser, chosen), run_torch(base.denoiser, chosen)
    (before,) = run_torch(tuned.denoiser, chosen)
    assert relative_l2(found, expected) < tolerance["rewrite"]
    assert relative_l2(before, expected) > 1e-2
