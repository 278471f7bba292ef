from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posecrafter.errors import EngineError, RequestError
from posecrafter.pose import PoseTrack, draw_poses
from posecrafter.progress import silent
from posecrafter.runtime import Bundle, Request, Session, make_plan
from posecrafter.runtime.invert import invert
from posecrafter.runtime.network import Network
from posecrafter.runtime.solve import solve

Engines = Callable[[Any], Any]


def by_time(x: np.ndarray, timestep: int, text: np.ndarray) -> np.ndarray:
    """An eps that depends on t and the prompt, not on x."""
    return np.full(x.shape, np.sin(timestep) + text.mean(), np.float32)


def target(frames: int, bundle: Bundle) -> PoseTrack:
    return bundle.poses[[frame % len(bundle.poses) for frame in range(frames)]]


@pytest.mark.parametrize("inversion", ["reference", "target"])
@pytest.mark.parametrize("frames", [1, 3, 17])
def test_sampling_undoes_inversion_when_eps_does_not_depend_on_x(
    inversion: Any, frames: int, memory_bundle: Bundle, engine: Engines
) -> None:
    session = Session(memory_bundle, engine(by_time))
    request = Request(poses=target(frames, memory_bundle), inversion=inversion, guidance=1.0, edit=())
    result = session.render(request)
    z = memory_bundle.latents[result.plan.reference]
    expected = np.rint(np.clip(z[:3] * 40 + 128, 0, 255)).transpose(1, 2, 0).repeat(8, axis=0).repeat(8, axis=1)
    assert result.frames.shape == (frames, 64, 64, 3)
    assert np.abs(result.frames.astype(int) - expected).max() <= 1


def test_guidance_mixes_the_prompts_and_one_turns_it_off(memory_bundle: Bundle, engine: Engines) -> None:
    poses = target(2, memory_bundle)
    fakes = {g: engine(by_time) for g in (1.0, 3.0)}
    for guidance, fake in fakes.items():
        result = Session(memory_bundle, fake).render(Request(poses=poses, guidance=guidance, edit=()))
        x = memory_bundle.latents[result.plan.reference].astype(np.float64)
        for step in result.plan.inversion_steps:  # the prompt's embedding is 0.5 everywhere, the empty one's 0
            x = step.a * x + step.b * (np.sin(step.timestep) + 0.5)
        for step in result.plan.sampling_steps:
            x = step.a * x + step.b * (np.sin(step.timestep) + guidance * 0.5)
        tones = np.clip(x[:3] * 40 + 128, 0, 255).transpose(1, 2, 0).repeat(8, axis=0).repeat(8, axis=1)
        assert np.abs(result.frames - tones).max() < 0.51
    assert {prompts for _, prompts in fakes[1.0].passes()} == {1}
    assert [prompts for _, prompts in fakes[3.0].passes()] == [1] * 4 + [2] * 4


def test_the_network_sees_pose_maps_between_0_and_1_and_the_control_scale(
    memory_bundle: Bundle, engine: Engines
) -> None:
    seen: list[dict[str, np.ndarray]] = []

    class Seeing(type(engine(by_time))):  # type: ignore[misc]
        def load(self, graph: str) -> Any:
            inner = super().load(graph)

            class Graph:
                def run(self, inputs: Any) -> Any:
                    seen.append(inputs)
                    return inner.run(inputs)

            return Graph()

    request = Request(poses=target(3, memory_bundle), steps=1, control_scale=0.25, window=2)
    plan = Session(memory_bundle, Seeing(by_time)).render(request).plan
    maps = [inputs["control_images"] for inputs in seen if "control_images" in inputs]
    reference = draw_poses(plan.reference_pose)
    for images, poses in zip(maps, (request.poses[:2], None, request.poses[2:]), strict=True):
        drawn = reference if poses is None else np.concatenate([reference, draw_poses(poses)])
        np.testing.assert_allclose(images * 255, drawn.transpose(0, 3, 1, 2), atol=1e-4)
    assert [float(inputs["control_scale"]) for inputs in seen if "x" in inputs] == [0.25] * 3


def test_reference_inversion_is_one_frame_and_is_not_repeated(memory_bundle: Bundle, engine: Engines) -> None:
    fake = engine(by_time)
    session = Session(memory_bundle, fake)
    request = Request(poses=target(5, memory_bundle))
    session.render(request)
    assert fake.passes() == [(1, 1)] * 4 + [(6, 2)] * 4
    fake.calls.clear()
    session.render(request)
    assert fake.passes() == [(6, 2)] * 4


def test_target_inversion_shows_every_copy_its_own_pose(memory_bundle: Bundle, engine: Engines) -> None:
    fake = engine(by_time)
    Session(memory_bundle, fake).render(Request(poses=target(5, memory_bundle), inversion="target"))
    assert fake.passes() == [(6, 1)] * 4 + [(6, 2)] * 4


def test_the_evaluations_of_the_plan_are_those_that_happen(memory_bundle: Bundle, engine: Engines) -> None:
    for inversion in ("reference", "target", None):
        fake = engine(by_time)
        result = Session(memory_bundle, fake).render(
            Request(poses=target(40, memory_bundle), inversion=inversion, inversion_iterations=3)  # type: ignore[arg-type]
        )
        assert result.plan.evaluations == sum(frames * prompts for frames, prompts in fake.passes())


def test_each_iteration_of_the_inverse_steps_brings_sampling_nearer_to_the_reference(
    memory_bundle: Bundle, engine: Engines
) -> None:
    """For noise that changes little from step to step, as a network's does. The first guess is free: two iterations
    take the evaluations of one, and one more at the first step."""

    def by_place(x: np.ndarray, timestep: int, text: np.ndarray) -> np.ndarray:
        return np.sin(x + timestep / 100).astype(np.float32)

    network = Network(fake := engine(by_place))
    reference, poses = memory_bundle.latents[0], memory_bundle.poses[:1]
    features = network.encode_poses(draw_poses(poses, style="v1.1"))
    errors = {}
    for iterations in (1, 2, 4, 12):
        plan = make_plan(Request(poses=poses, steps=50, guidance=1.0, inversion_iterations=iterations), memory_bundle)
        before = len(fake.passes())
        noise = invert(network, reference, features, 1, memory_bundle.prompt, plan, silent)
        assert len(fake.passes()) - before == {1: 50, 2: 51, 4: 151, 12: 551}[iterations]
        conditions = network.conditions(memory_bundle.prompt[None], (1.0,), features, 1.0)
        back = network.engine.download(solve(network, noise, plan.sampling_steps, conditions, "sample", silent))
        errors[iterations] = float(np.abs(back[0] - reference).max())
    assert errors[1] > 3 * errors[2] > 9 * errors[4]
    assert errors[12] < 2e-4


class CombiningEngine:
    """Another engine's, with buffers that each run of the denoiser writes again, as recorded ones are."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.name, self.device = engine, engine.name, engine.device
        self._out, self.combined = np.zeros((1, 4, 8, 8), np.float32), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def load(self, graph: str) -> Any:
        inner, engine = self._engine.load(graph), self

        class Graph:
            def run(self, inputs: Any) -> dict[str, Any]:
                found = inner.run(inputs)
                if graph != "denoiser":
                    return dict(found)
                engine._out[...] = found["x_next"]
                return {**found, "x_next": engine._out}

        return Graph()

    def combine(self, factors: Any, buffers: Any) -> np.ndarray:
        self.combined += 1
        return np.float32(sum(f * x for f, x in zip(factors, buffers, strict=True)))


def test_fewer_sampling_steps_of_second_order_end_nearer_to_the_truth_than_ddim_s(
    memory_bundle: Bundle, engine: Engines
) -> None:
    """With the eps of pictures that are noise of standard deviation 0.5, for which x stays in proportion to its spread;
    on the host, and in an engine that adds up by itself."""

    def spread(level: float) -> float:
        return (0.25 * level + 1 - level) ** 0.5

    def eps(x: np.ndarray, timestep: int, text: np.ndarray) -> np.ndarray:
        level = float(schedule.alphas_cumprod[timestep])
        return (1 - level) ** 0.5 * x / spread(level) ** 2

    def ends(steps: Any) -> np.ndarray:
        x = start.astype(np.float64)
        before = np.zeros_like(x)
        for step in steps:
            e = eps(x, step.timestep, x)
            x, before = step.a * x + step.b * e + step.c * (e - before), e
        return x

    poses, schedule = memory_bundle.poses[:1], memory_bundle.manifest.schedule
    start = np.random.default_rng(3).standard_normal((1, 4, 8, 8)).astype(np.float32)
    plan = make_plan(Request(poses=poses, steps=50, sampling_steps=10, guidance=1.0), memory_bundle)
    found = {}
    for name, given in (("host", engine(eps)), ("engine", CombiningEngine(engine(eps)))):
        network = Network(given)
        features = network.encode_poses(draw_poses(poses, style="v1.1"))
        conditions = network.conditions(memory_bundle.prompt[None], (1.0,), features, 1.0)
        found[name] = given.download(solve(network, start, plan.sampling_steps, conditions, "sample", silent))
    assert given.combined == 20
    for x in found.values():
        assert np.abs(x - ends(plan.sampling_steps)).max() < 2e-5
    true = start * spread(schedule.alphas_cumprod[0]) / spread(schedule.alphas_cumprod[981])
    ddim = ends([replace(step, c=0.0) for step in plan.sampling_steps])
    assert np.abs(found["host"] - true).max() < 0.5 * np.abs(ddim - true).max()


def test_sampling_steps_are_the_request_s_or_its_steps_or_the_bundle_s(memory_bundle: Bundle, engine: Engines) -> None:
    defaults = replace(memory_bundle.manifest.defaults, sampling_steps=2)
    told = replace(memory_bundle, manifest=replace(memory_bundle.manifest, defaults=defaults))
    for bundle, options, counts in (
        (memory_bundle, {}, (4, 4)),
        (told, {}, (4, 2)),
        (told, {"steps": 6}, (6, 6)),
        (told, {"sampling_steps": 3}, (4, 3)),
        (memory_bundle, {"steps": 6, "sampling_steps": 5}, (6, 5)),
    ):
        fake = engine(by_time)
        plan = Session(bundle, fake).render(Request(poses=target(2, bundle), **options)).plan
        assert (len(plan.inversion_steps), len(plan.sampling_steps)) == counts
        assert plan.evaluations == sum(frames * prompts for frames, prompts in fake.passes())
        assert plan.summary()["sampling_steps"] == counts[1]
    with pytest.raises(RequestError) as caught:
        make_plan(Request(poses=target(2, told), sampling_steps=5), told)
    assert caught.value.code == "sampling-steps-range"


def test_a_bundle_says_how_often_an_inverse_step_is_evaluated(memory_bundle: Bundle) -> None:
    defaults = replace(memory_bundle.manifest.defaults, inversion_iterations=2)
    told = replace(memory_bundle, manifest=replace(memory_bundle.manifest, defaults=defaults))
    request = Request(poses=memory_bundle.poses[:3])
    assert make_plan(request, memory_bundle).inversion_iterations == 1
    assert make_plan(request, told).inversion_iterations == 2
    assert make_plan(replace(request, inversion_iterations=1), told).inversion_iterations == 1


def test_a_bundle_says_whether_editing_keeps_a_frames_mean_and_a_request_overrules_it(
    memory_bundle: Bundle, engine: Engines
) -> None:
    half = memory_bundle.latents + np.float32(2) * (np.arange(8) < 4)  # so that what is moved changes the mean
    memory_bundle = replace(memory_bundle, latents=half)
    defaults = replace(memory_bundle.manifest.defaults, keep_mean=True)
    told = replace(memory_bundle, manifest=replace(memory_bundle.manifest, defaults=defaults))
    track = target(3, memory_bundle)
    request = Request(poses=PoseTrack(track.xy + np.float32(16), track.score, track.width, track.height))
    frames: dict[bool, list[np.ndarray]] = {}
    for keeps in (None, True, False):
        for bundle in (memory_bundle, told):
            wanted = bundle is told if keeps is None else keeps
            result = Session(bundle, engine(by_time)).render(replace(request, keep_mean=keeps))
            assert result.plan.keep_mean == wanted
            frames.setdefault(wanted, []).append(result.frames)
    for same in frames.values():
        assert len(same) == 3
        assert all((one == same[0]).all() for one in same)
    assert (frames[True][0] != frames[False][0]).any()


@pytest.mark.parametrize("chunk", [1, 3, 16, 100])
@pytest.mark.parametrize("frames", [1, 3, 17, 33])
def test_decoding_in_chunks_of_any_size_gives_every_frame_once(
    chunk: int, frames: int, memory_bundle: Bundle, engine: Engines
) -> None:
    whole = Request(poses=target(frames, memory_bundle), steps=1, decode_chunk=1000)
    parts = Request(poses=target(frames, memory_bundle), steps=1, decode_chunk=chunk)
    session = Session(memory_bundle, engine(by_time))
    expected = session.render(whole).frames
    assert len(expected) == frames
    np.testing.assert_array_equal(session.render(parts).frames, expected)


def test_the_preview_is_given_every_frame_once_in_order_and_before_later_ones_are_decoded(
    memory_bundle: Bundle, engine: Engines
) -> None:
    fake = engine(by_time)
    seen: list[tuple[int, int, int]] = []
    shown = []

    def preview(first: int, frames: np.ndarray) -> None:
        seen.append((first, len(frames), len(fake.passes())))
        shown.append(frames.copy())

    request = Request(poses=target(40, memory_bundle), steps=1, decode_chunk=16)
    result = Session(memory_bundle, fake).render(request, preview=preview)
    # The first window's frames come after its one sampling pass, before the second window's.
    assert seen == [(0, 16, 2), (16, 4, 2), (20, 16, 3), (36, 4, 3)]
    np.testing.assert_array_equal(np.concatenate(shown), result.frames)


def test_a_long_clip_is_sampled_in_even_windows_behind_the_reference(memory_bundle: Bundle, engine: Engines) -> None:
    fake = engine(by_time)
    result = Session(memory_bundle, fake).render(Request(poses=target(40, memory_bundle), steps=1))
    assert [len(window) for window in result.plan.windows] == [20, 20]
    assert fake.passes() == [(1, 1), (21, 2), (21, 2)]
    assert len(result.frames) == 40


def test_plain_noise_is_reproducible_and_the_same_for_every_frame(memory_bundle: Bundle, engine: Engines) -> None:
    session = Session(memory_bundle, engine(by_time))
    poses = target(3, memory_bundle)
    first = session.render(Request(poses=poses, inversion=None, seed=3, edit=())).frames
    np.testing.assert_array_equal(session.render(Request(poses=poses, inversion=None, seed=3, edit=())).frames, first)
    np.testing.assert_array_equal(first[0], first[2])
    assert (session.render(Request(poses=poses, inversion=None, seed=4, edit=())).frames != first).any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("timestep", "step"), [(751, 1), (501, 2), (1, 4)])
@pytest.mark.parametrize("overlaps", [False, True])
def test_a_number_that_is_not_finite_stops_the_run_with_the_step_and_the_cure(
    value: float, timestep: int, step: int, overlaps: bool, memory_bundle: Bundle, engine: Engines
) -> None:
    def breaks(x: np.ndarray, now: int, text: np.ndarray) -> np.ndarray:
        eps = np.zeros(x.shape, np.float32)
        eps[-1, 0, 0, 0] = value if now == timestep and len(x) > 1 else 0
        return eps

    fake = engine(breaks)
    if overlaps:
        fake.fetch = lambda buffer: lambda: buffer
    with pytest.raises(EngineError) as caught, np.errstate(invalid="ignore"):
        Session(memory_bundle, fake).render(Request(poses=target(2, memory_bundle)))
    assert caught.value.code == "nan-latents"
    assert f"sample step {step} of 4 (timestep {timestep})" in caught.value.message
    assert "--precision fp32" in caught.value.message
    assert len(fake.passes()) == 4 + min(step + overlaps, 4)  # that device runs a step ahead of what is looked at


@pytest.mark.parametrize("overlaps", [False, True])
def test_progress_counts_every_stage_to_its_end(overlaps: bool, memory_bundle: Bundle, engine: Engines) -> None:
    seen: list[tuple[str, int, int]] = []
    fake = engine(by_time)
    if overlaps:
        fake.fetch = lambda buffer: lambda: buffer
    Session(memory_bundle, fake).render(
        Request(poses=target(9, memory_bundle), decode_chunk=4),
        lambda stage, done, total: seen.append((stage, done, total)),
    )
    assert [entry for entry in seen if entry[0] == "invert"] == [("invert", i, 4) for i in (1, 2, 3, 4)]
    assert [entry for entry in seen if entry[0] == "sample"] == [("sample", i, 4) for i in (1, 2, 3, 4)]
    assert [entry for entry in seen if entry[0] == "decode"] == [("decode", i, 9) for i in (4, 8, 9)]


@pytest.mark.parametrize("after", [0, 3, 6, 8])
def test_cancelling_stops_between_steps(after: int, memory_bundle: Bundle, engine: Engines) -> None:
    asked = 0

    def cancel() -> bool:
        nonlocal asked
        asked += 1
        return asked > after

    fake = engine(by_time)
    with pytest.raises(RequestError) as caught:
        Session(memory_bundle, fake).render(Request(poses=target(2, memory_bundle)), cancel=cancel)
    assert caught.value.code == "cancelled"
    assert len(fake.passes()) == after


def test_a_second_call_at_once_is_refused_and_the_first_is_not_disturbed(
    memory_bundle: Bundle, engine: Engines
) -> None:
    session, request = Session(memory_bundle, engine(by_time)), Request(poses=target(2, memory_bundle))
    alone, codes = session.render(request).frames, []

    def meddle(stage: str, done: int, total: int, detail: str = "") -> None:
        for call in (lambda: session.render(request), session.load_person, session.close):
            with pytest.raises(RequestError) as caught:
                call()
            codes.append(caught.value.code)

    np.testing.assert_array_equal(session.render(request, meddle).frames, alone)
    assert set(codes) == {"session-busy"}
    np.testing.assert_array_equal(session.render(request).frames, alone)


def test_a_closed_session_says_so_and_may_be_closed_again(memory_bundle: Bundle, engine: Engines) -> None:
    with Session(memory_bundle, engine(by_time)) as session:
        session.close()
    with pytest.raises(RequestError) as caught:
        session.render(Request(poses=target(2, memory_bundle)))
    assert caught.value.code == "session-closed"


def test_a_changed_prompt_needs_an_exported_bundle(memory_bundle: Bundle, engine: Engines) -> None:
    with pytest.raises(RequestError) as caught:
        Session(memory_bundle, engine(by_time)).render(Request(poses=target(1, memory_bundle), prompt="red hair"))
    assert caught.value.code == "prompt-text"


@pytest.mark.parametrize(("inversion", "kept"), [("reference", 1), ("target", 0), (None, 0)])
def test_an_engine_that_edits_keeps_the_latents_from_inversion_to_decoding(
    inversion: Any, kept: int, memory_bundle: Bundle, engine: Engines
) -> None:
    """It is asked for the inverted frame that is kept for the next request, for what is decoded, and for nothing else;
    and the frames are those of an engine that cannot."""
    pytest.importorskip("triton", reason="the kernels need Triton, which is made for Linux")
    from posecrafter.kernels.warp_latents import truth

    plain, downloads = engine(by_time), []

    class Keeping(type(plain)):
        def download(self, buffer: np.ndarray) -> np.ndarray:
            downloads.append(buffer.shape)
            return buffer

        def fetch(self, buffer: np.ndarray) -> Callable[[], np.ndarray]:
            return lambda: buffer

        def edit(
            self, noise: np.ndarray, origins: np.ndarray, boxes: np.ndarray, mode: str, keep_mean: bool
        ) -> np.ndarray:
            assert not keep_mean
            every = np.repeat(noise, len(origins) // len(noise), axis=0)
            return truth(every, every[0], origins, boxes, ["nearest", "bilinear"].index(mode))

    request = Request(poses=target(5, memory_bundle), inversion=inversion, window=3, warp="nearest", decode_chunk=9)
    result = Session(memory_bundle, Keeping(by_time)).render(request)
    assert sum(len(regions) for regions in result.plan.motions) > 5
    assert len(downloads) == kept + 2 * len(result.plan.windows)
    np.testing.assert_array_equal(result.frames, Session(memory_bundle, plain).render(request).frames)


def test_an_exported_bundle_renders_and_a_changed_prompt_changes_the_picture(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle, "onnxruntime") as session:
        poses = session.bundle.poses[:2]
        plain = session.render(Request(poses=poses, steps=2))
        stored = session.render(Request(poses=poses, steps=2, prompt=session.bundle.manifest.text.prompt))
        other = session.render(Request(poses=poses, steps=2, prompt="something else entirely", guidance=9.0))
    assert np.abs(plain.frames.astype(int) - stored.frames).max() <= 1
    assert (plain.frames != other.frames).any()


@pytest.mark.parametrize("inversion", ["reference", "target"])
def test_reference_inversion_of_equal_frames_equals_one_frame(tiny_bundle: Path, inversion: Any) -> None:
    """Where every target sees q_r, target mode inverts F equal frames: they must equal the one of reference mode."""
    with Session.open(tiny_bundle, "onnxruntime") as session:
        still = session.bundle.poses[[2, 2, 2]]
        one = session.render(Request(poses=still[:1], steps=3, edit=())).frames
        many = session.render(Request(poses=still, steps=3, edit=(), inversion=inversion)).frames
    assert np.abs(many.astype(int) - one).max() <= 1


def test_a_person_who_is_unloaded_is_freed_and_can_come_back(shared_bundle: Path) -> None:
    with Session.open(shared_bundle, "onnxruntime", threads=1) as session:
        request = Request(poses=session.bundle.poses[:1], steps=1)
        own = session.render(request).frames
        session.load_person("b")
        frames, network = session.render(request).frames, weakref.ref(session._network)
        session.unload_person("b")
        session.unload_person("nobody")
        assert network() is None
        np.testing.assert_array_equal(session.render(request).frames, own)
        session.load_person("b")
        np.testing.assert_array_equal(session.render(request).frames, frames)


def test_a_result_moves_at_the_rate_of_its_poses(memory_bundle: Bundle, engine: Engines) -> None:
    session, poses = Session(memory_bundle, engine(by_time)), target(2, memory_bundle)
    for fps, expected in ((50.0, 50.0), (None, memory_bundle.manifest.fps)):
        assert session.render(Request(poses=replace(poses, fps=fps), steps=1)).fps == expected


def test_a_stream_gives_the_frames_of_a_render_and_keeps_none(memory_bundle: Bundle, engine: Engines) -> None:
    session, request = Session(memory_bundle, engine(by_time)), Request(poses=target(7, memory_bundle), window=3)
    whole, parts = session.render(request), []
    rendered = session.stream(request, lambda first, frames: parts.append((first, frames)))
    assert [first for first, _ in parts] == [0, 2, 5]
    np.testing.assert_array_equal(np.concatenate([frames for _, frames in parts]), whole.frames)
    assert (rendered.fps, rendered.plan.frames, set(rendered.seconds)) == (whole.fps, 7, set(whole.seconds))


def test_who_takes_frames_may_raise_and_the_session_renders_on(memory_bundle: Bundle, engine: Engines) -> None:
    session, request = Session(memory_bundle, engine(by_time)), Request(poses=target(4, memory_bundle), window=2)
    expected = session.render(request).frames
    for error in (ZeroDivisionError, KeyboardInterrupt, GeneratorExit):

        def fail(first: int, frames: np.ndarray, error: type[BaseException] = error) -> None:
            raise error

        with pytest.raises(error):
            session.stream(request, fail)
        np.testing.assert_array_equal(session.render(request).frames, expected)
