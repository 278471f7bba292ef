from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posecrafter.errors import PoseCrafterError, TrainingError
from posecrafter.files import read_json
from posecrafter.finetune import train as module
from posecrafter.finetune.base import load_base
from posecrafter.finetune.data import frame_clip, prepare_clip
from posecrafter.finetune.options import FinetuneOptions
from posecrafter.finetune.person import apply_person, load_person
from posecrafter.finetune.run_folder import RunFolder
from posecrafter.finetune.train import Trainer, finetune
from posecrafter.pose import read_poses


@pytest.fixture
def run(base, clip, options, tmp_path) -> Callable[..., Path]:
    """Fine-tune a fresh copy of the tiny base in a named folder."""

    def start(name: str, options: FinetuneOptions = options, **more: Any) -> Path:
        return finetune(*clip, copy.deepcopy(base), tmp_path / name, options, **more).out

    return start


def curve(out: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in RunFolder(out).read_log()]


def same_person(a: Path, b: Path) -> bool:
    first, second = (load_file(out / "person.safetensors") for out in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def stop_before(step: int) -> Callable[[], bool]:
    """A cancel that turns true once `step - 1` steps are done."""
    asked = iter(range(1000))
    chunks = 2  # cancel is asked before each chunk of the 12 frames, too
    return lambda: next(asked) >= chunks + step - 1


@pytest.mark.parametrize(
    ("precision", "optimizer"), [("fp32", "adamw"), ("bf16", "adamw"), ("fp32", "muon"), ("bf16", "muon")]
)
def test_a_resumed_run_is_the_straight_run_to_the_bit(run, options, precision, optimizer) -> None:
    options = replace(options, precision=precision, optimizer=optimizer)
    straight = run("straight", options)
    with pytest.raises(TrainingError, match=r"step 4 of 6.*--resume") as caught:
        run("stopped", options, cancel=stop_before(5))
    assert caught.value.code == "cancelled"
    stopped = run("stopped", options, resume=True)
    assert len(curve(straight)) == 6
    assert curve(stopped) == curve(straight)
    assert same_person(stopped, straight)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_with_two_threads_too_a_resumed_run_is_the_straight_run_to_the_bit(run, options, precision) -> None:
    options = replace(options, precision=precision, optimizer="muon", scope="all", adapt_decoder=2)
    straight = run("straight", options)
    with pytest.raises(TrainingError, match=r"step 4 of 6.*--resume"):
        run("stopped", options, cancel=stop_before(5))
    stopped = run("stopped", options, resume=True)
    assert curve(stopped) == curve(straight)
    assert same_person(stopped, straight)


@pytest.mark.parametrize(("leak", "alike"), [("frame", False), ("key", True)])
def test_with_the_keys_leak_all_frames_are_alike_where_sampling_begins(
    base, clip, options, monkeypatch, leak, alike
) -> None:
    first = base.schedule.sampling(base.defaults.steps)[0].timestep
    monkeypatch.setattr(module, "draw_noise", lambda shape, *_: (first, torch.ones(shape)))
    options = replace(options, signal_leak=leak, precision="fp32")
    frames, poses = frame_clip(*clip, options.width, options.height)
    seen: list[torch.Tensor] = []
    trainer = Trainer(base, prepare_clip(frames, poses, "", base), options)
    base.denoiser.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    trainer.step()
    assert torch.allclose(seen[0], seen[0][:1].expand_as(seen[0]), atol=1e-5) == alike


def test_a_run_killed_between_checkpoints_resumes_from_the_last_and_ends_the_same(run, monkeypatch, tmp_path) -> None:
    straight = run("straight")
    step = Trainer.step

    def killed(trainer: Trainer) -> dict[str, float]:
        if trainer.done == 4:
            raise SystemExit("no time to save")
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(SystemExit):
        run("killed")
    monkeypatch.setattr(Trainer, "step", step)
    assert [number for number, _ in curve(tmp_path / "killed")] == [1, 2, 3, 4]
    assert not (tmp_path / "killed" / "run.json").exists()
    resumed = run("killed", resume=True)
    assert curve(resumed) == curve(straight)
    assert same_person(resumed, straight)


def test_a_lora_run_resumes_to_the_bit(run, options) -> None:
    options = replace(options, lora_rank=2)
    straight = run("straight", options)
    with pytest.raises(TrainingError):
        run("stopped", options, cancel=stop_before(3))
    assert same_person(run("stopped", options, resume=True), straight)
    assert load_person(straight / "person.safetensors").kind == "lora"


def test_the_loss_goes_down_on_a_tiny_clip(run, options) -> None:
    out = run("all", replace(options, steps=40, scope="all", learning_rate=2e-3, save_every=1000))
    losses = [loss for _, loss in curve(out)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_the_run_folder_holds_what_export_needs_and_nothing_else(run, base, clip, options) -> None:
    out = run("run", replace(options, prompt="a disc"))
    names = {entry.name for entry in out.iterdir()}
    assert names == {"run.json", "person.safetensors", "poses.json", "latents.safetensors", "log.jsonl"}
    record = read_json(out / "run.json")
    assert record["format"] == "posecrafter-run-1"
    assert record["base"] == {"source": base.source, "controlnet": None, "sha256": base.sha256}
    assert (record["width"], record["height"], record["frames"], record["fps"]) == (64, 64, 12, 25.0)
    assert (record["prompt"], record["pose_style"], record["steps"]) == ("a disc", "v1.1", 6)
    frames, poses = frame_clip(*clip, 64, 64)
    latents = load_file(out / "latents.safetensors")["latents"]
    assert torch.equal(latents, prepare_clip(frames, poses, "", base).latents)
    assert (read_poses(out / "poses.json").xy == poses.xy).all()
    assert load_person(out / "person.safetensors").base_sha256 == base.sha256


def test_the_saved_person_is_what_was_trained(base, clip, options, draw, tolerance, tmp_path) -> None:
    trained = copy.deepcopy(base)
    out = finetune(*clip, trained, tmp_path / "run", options).out
    apply_person(base.denoiser, load_person(out / "person.safetensors"))
    with torch.no_grad():
        expected = trained.denoiser(**draw(3))
        assert (base.denoiser(**draw(3)) - expected).abs().max() < tolerance["half"] * expected.abs().max()


def test_only_the_trained_weights_move(base, clip, options, tmp_path) -> None:
    trained = copy.deepcopy(base)
    finetune(*clip, trained, tmp_path / "run", options)
    before, after = base.denoiser.state_dict(), trained.denoiser.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(".attn1.to_out.0." in name or "_temp." in name for name in moved)
    assert any(name.startswith("controlnet.") for name in moved)


def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_cure(run, options, monkeypatch, tmp_path) -> None:
    draw, count = module.draw_noise, iter(range(100))

    def poisoned(*arguments: Any) -> Any:
        timestep, noise = draw(*arguments)
        return timestep, noise * (float("inf") if next(count) == 2 else 1)

    monkeypatch.setattr(module, "draw_noise", poisoned)
    with pytest.raises(TrainingError, match=r"step 3.*0\.001") as caught:
        run("run")
    assert caught.value.code == "loss-not-finite"
    assert not (tmp_path / "run" / "person.safetensors").exists()


def test_a_time_limit_ends_a_run_well(run, options) -> None:
    out = run("run", replace(options, steps=10_000, max_seconds=0.05))
    assert 1 <= read_json(out / "run.json")["steps"] < 10_000
    assert (out / "person.safetensors").exists()


def test_a_run_with_too_little_time_has_as_many_steps_as_fit_and_its_rate_falls_with_them(
    run, options, monkeypatch
) -> None:
    times = (number // 2 + number % 2 * 0.5 for number in range(10_000))  # every step takes half a second
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    rates = []
    whole = module.FinetuneOptions.rate
    monkeypatch.setattr(
        module.FinetuneOptions, "rate", lambda self, *told: rates.append(whole(self, *told)) or rates[-1]
    )
    slow = replace(options, steps=1000, lr_schedule="cosine", max_seconds=20.0)
    with pytest.raises(TrainingError, match="step 11 of 40"):
        run("run", slow, cancel=stop_before(12))
    out = run("run", slow, resume=True)
    assert read_json(out / "run.json")["steps"] == 40
    assert rates[-1] < 0.01 * max(rates)


def test_a_resume_with_other_options_or_another_clip_is_refused(run, options, clip, base, tmp_path) -> None:
    with pytest.raises(TrainingError):
        run("run", cancel=stop_before(4))
    with pytest.raises(TrainingError, match=r"learning_rate is 0\.5, was 0\.001") as caught:
        run("run", replace(options, learning_rate=0.5), resume=True)
    assert caught.value.code == "resume-differs"
    video, poses = clip
    other = replace(video, frames=video.frames[::-1].copy())
    with pytest.raises(TrainingError, match="video"):
        finetune(other, poses, base, tmp_path / "run", options, resume=True)


def test_a_run_in_the_way_is_refused_before_anything_is_computed(run, base, clip, options, tmp_path) -> None:
    out = run("run")
    before = (out / "person.safetensors").read_bytes()
    with pytest.raises(TrainingError, match="--overwrite") as caught:
        run("run")
    assert caught.value.code == "run-exists"
    assert (out / "person.safetensors").read_bytes() == before
    assert run("run", replace(options, seed=1), overwrite=True) == out
    assert (out / "person.safetensors").read_bytes() != before


def test_bad_input_leaves_no_folder_behind(run, base, clip, options, tmp_path) -> None:
    video, poses = clip
    with pytest.raises(PoseCrafterError, match="poses-count"):
        finetune(video, poses[:5], base, tmp_path / "run", options)
    assert not (tmp_path / "run").exists()


def test_progress_tells_stage_step_and_loss(run) -> None:
    told: list[tuple[str, int, int, str]] = []
    run("run", progress=lambda stage, done, total, detail="": told.append((stage, done, total, detail)))
    steps = [entry for entry in told if entry[0] == "fine-tune"]
    assert [(done, total) for _, done, total, _ in steps] == [(n, 6) for n in range(1, 7)]
    assert all(detail.startswith("loss 0.") or detail.startswith("loss 1.") for *_, detail in steps)
    assert ("encode", 12, 12, "") in told


def test_gradient_checkpointing_gives_the_same_person(run, options) -> None:
    plain, saving = run("plain"), run("saving", replace(options, gradient_checkpointing=True))
    assert same_person(plain, saving)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_on_cuda_stops_and_resumes_in_every_precision(tiny_base, clip, options, tmp_path, precision) -> None:
    options = replace(options, precision=precision, adapt_decoder=2)
    with pytest.raises(TrainingError, match="--resume"):
        finetune(*clip, load_base(tiny_base, device="cuda"), tmp_path / "run", options, cancel=stop_before(4))
    out = finetune(*clip, load_base(tiny_base, device="cuda"), tmp_path / "run", options, resume=True).out
    assert [number for number, _ in curve(out)] == list(range(1, 7))
    assert read_json(out / "run.json")["precision"] == precision
