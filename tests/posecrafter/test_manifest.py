from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posecrafter.errors import BundleError
from posecrafter.manifest import Defaults, Latents, Manifest, Range, Text
from posecrafter.schedule import Schedule


def small_manifest(folder: Path) -> Manifest:
    return Manifest(
        precision="fp32",
        width=Range(64, 256, 8),
        height=Range(64, 256, 8),
        frames=Range(1, 33),
        prompts=Range(1, 4),
        latents=Latents(channels=4, factor=8, scaling_factor=0.18215),
        text=Text(tokens=77, width=768, prompt="a person"),
        schedule=Schedule(),
        defaults=Defaults(width=128, height=128, steps=50, guidance=12.0, control_scale=1.0),
        pose_style="v1.1",
        fps=25.0,
        training_frames=8,
        network_width=320,
        parity={"denoiser": 1e-6},
        files=Manifest.entries(folder),
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "denoiser.onnx").write_bytes(b"graph")
    small_manifest(tmp_path).write(tmp_path)
    return tmp_path


def rewrite(bundle: Path, **changes: Any) -> None:
    path = bundle / "manifest.json"
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in raw.items() if value is not None}))


def refuse(bundle: Path, code: str) -> str:
    with pytest.raises(BundleError) as caught:
        Manifest.read(bundle).verify(bundle)
    assert caught.value.code == code
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_written_manifest_reads_back_equal(bundle: Path) -> None:
    assert Manifest.read(bundle) == small_manifest(bundle)
    Manifest.read(bundle).verify(bundle)


def test_a_folder_without_manifest_is_not_a_bundle(tmp_path: Path) -> None:
    assert "posecrafter export" in refuse(tmp_path, "bundle-missing")


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "graphs" / "denoiser.onnx").unlink()
    assert "graphs/denoiser.onnx" in refuse(bundle, "bundle-file-missing")


@pytest.mark.parametrize("content", [b"grapH", b"graph and more", b""])
def test_an_altered_file_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / "graphs" / "denoiser.onnx").write_bytes(content)
    assert "graphs/denoiser.onnx" in refuse(bundle, "bundle-hash")


def test_a_newer_format_says_to_update(bundle: Path) -> None:
    rewrite(bundle, format_version=2)
    message = refuse(bundle, "bundle-format")
    assert "version 2" in message
    assert "update" in message


def test_an_older_format_says_to_export_again(bundle: Path) -> None:
    for version in (0, True, "1"):
        rewrite(bundle, format_version=version)
        assert "export it again" in refuse(bundle, "bundle-format")


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "graphs/../../secret"])
def test_a_path_outside_the_bundle_is_refused(bundle: Path, name: str) -> None:
    rewrite(bundle, files={name: {"bytes": 5, "sha256": "0" * 64}})
    assert name in refuse(bundle, "bundle-path")


def test_a_link_out_of_the_bundle_is_refused(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "vae_decoder.onnx").write_bytes(b"elsewhere")
    (bundle / "graphs" / "vae_decoder.onnx").symlink_to(outside / "vae_decoder.onnx")
    small_manifest(bundle).write(bundle)
    assert "graphs/vae_decoder.onnx" in refuse(bundle, "bundle-path")


@pytest.mark.parametrize("change", [{"latents": None}, {"files": None}, {"frames": {"min": 1}}, {"surprise": 1}])
def test_a_missing_or_unknown_field_is_refused(bundle: Path, change: dict[str, Any]) -> None:
    rewrite(bundle, **change)
    refuse(bundle, "bundle-manifest")


@pytest.mark.parametrize("change", [
    {"training_frames": True}, {"fps": "25"}, {"precision": 32}, {"kind": "borrowed"}, {"frames": {"min": 1, "max": 1}},
    {"parity": []}, {"shared": 3}, {"shared": {"denoiser": []}}, {"shared": {"denoiser": {"to_q": ["4"]}}},
    {"shared": {"denoiser": {"to_q": [4, True]}}}, {"files": {"x": {"bytes": -1, "sha256": ""}}},
])  # fmt: skip
def test_a_field_of_another_type_or_out_of_bounds_is_refused(bundle: Path, change: dict[str, Any]) -> None:
    rewrite(bundle, **change)
    refuse(bundle, "bundle-manifest")


def rewrite_part(bundle: Path, part: str, change: dict[str, Any]) -> None:
    raw = json.loads((bundle / "manifest.json").read_text())
    rewrite(bundle, **{part: raw[part] | change})


@pytest.mark.parametrize(("part", "change"), [
    ("latents", {"channels": 4097}), ("latents", {"factor": 257}), ("frames", {"max": 1}),
    ("defaults", {"width": 16385}), ("defaults", {"height": 16385}), ("defaults", {"sampling_steps": -1}),
    ("defaults", {"inversion_iterations": 0}), ("defaults", {"inversion_iterations": 17}),
    ("schedule", {"steps_offset": -1}),
])  # fmt: skip
def test_a_number_out_of_its_bounds_is_refused(bundle: Path, part: str, change: dict[str, int]) -> None:
    rewrite_part(bundle, part, change)
    refuse(bundle, "bundle-manifest")


@pytest.mark.parametrize(("part", "change"), [
    ("latents", {"channels": 4096, "factor": 256}), ("frames", {"max": 2}), ("schedule", {"steps_offset": 0}),
    ("defaults", {"width": 16384, "height": 16384, "sampling_steps": 0, "inversion_iterations": 16}),
    ("shared", {"denoiser": {"to_q": [0, 4]}}),
])  # fmt: skip
def test_a_number_at_its_bound_is_taken(bundle: Path, part: str, change: dict[str, Any]) -> None:
    rewrite_part(bundle, part, change)
    Manifest.read(bundle).verify(bundle)


def test_a_manifest_that_is_older_inverts_and_edits_as_published(bundle: Path) -> None:
    raw = json.loads((bundle / "manifest.json").read_text())
    for name in ("inversion_iterations", "keep_mean", "sampling_steps"):
        del raw["defaults"][name]
    rewrite(bundle, defaults=raw["defaults"])
    defaults = Manifest.read(bundle).defaults
    assert (defaults.inversion_iterations, defaults.keep_mean, defaults.sampling_steps) == (1, False, 0)


@pytest.mark.parametrize(
    ("name", "code"), [("graphs/\0", "bundle-path"), ("graphs/" + 5000 * "x", "bundle-file-missing")]
)
def test_a_name_that_no_file_can_have_is_refused(bundle: Path, name: str, code: str) -> None:
    rewrite(bundle, files={name: {"bytes": 1, "sha256": ""}})
    refuse(bundle, code)


@pytest.mark.parametrize("name", ["graphs/denoiser.cpu.onnx", "person/weights.safetensors"])
def test_a_file_that_nobody_vouches_for_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(b"planted")
    assert name in refuse(bundle, "bundle-file-unlisted")


def test_files_of_another_part_are_not_looked_at(bundle: Path) -> None:
    (bundle / "graphs" / "denoiser.onnx").write_bytes(b"altered")
    (bundle / "graphs" / "planted.onnx").write_bytes(b"")
    manifest = Manifest.read(bundle)
    manifest.verify(bundle, under="person/")
    (bundle / "person").mkdir()
    (bundle / "person" / "poses.json").write_text("[]")
    with pytest.raises(BundleError, match=r"person/poses\.json"):
        manifest.verify(bundle, under="person/")


def test_a_systems_hidden_file_is_passed_over_and_a_link_to_nowhere_is_not(bundle: Path) -> None:
    (bundle / "graphs" / ".DS_Store").write_bytes(b"")
    Manifest.read(bundle).verify(bundle)
    (bundle / "graphs" / "denoiser.cpu.onnx").symlink_to("nowhere")
    assert "denoiser.cpu.onnx" in refuse(bundle, "bundle-file-unlisted")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"parity": NaN}', '{"fps": 1e999}', "", "{", "[]", '{"format": "other"}']
)
def test_what_is_not_a_manifest_is_refused(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    refuse(bundle, "bundle-manifest")


def test_a_range_has_both_ends_and_its_multiple() -> None:
    assert 64 in Range(64, 256, 8)
    assert 256 in Range(64, 256, 8)
    assert 100 not in Range(64, 256, 8)
    assert 264 not in Range(64, 256, 8)
    assert 56 not in Range(64, 256, 8)
    assert Range(64, 256, 16).divided(8) == Range(8, 32, 2)
