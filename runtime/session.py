"""A session: one open bundle on one engine. Start reading here; `stream` is the whole product.

with Session.open("bundle") as session:
    result = session.render(Request(poses=read_poses("target.json")))
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from posecrafter.errors import BundleError, RequestError
from posecrafter.pose import PoseTrack, draw_poses
from posecrafter.progress import Cancel, Progress, silent
from posecrafter.runtime.bundle import Bundle
from posecrafter.runtime.choose import choose
from posecrafter.runtime.decode import Preview, decode, unseen
from posecrafter.runtime.edit import edit
from posecrafter.runtime.engines import Buffer, Choice, Engine, open_engine
from posecrafter.runtime.engines.bound import BoundEngine, upload_weights
from posecrafter.runtime.engines.measured import KEPT
from posecrafter.runtime.invert import invert, shared_noise
from posecrafter.runtime.inverted import Inverted, inversion_key
from posecrafter.runtime.network import Network
from posecrafter.runtime.person import bind_own, find_pack, read_person
from posecrafter.runtime.plan import Plan, make_plan
from posecrafter.runtime.prompt import embed
from posecrafter.runtime.request import Request
from posecrafter.runtime.solve import solve

Floats = NDArray[np.float32]
Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


@dataclass(frozen=True)
class Rendered:
    """What is left of a render whose frames are gone: `Result` without them."""

    fps: float
    plan: Plan
    seconds: dict[str, float]


@dataclass(frozen=True)
class Result:
    """frames: uint8 [M, H, W, 3] RGB. fps: frames a second, the poses' own or else the training video's. seconds: per
    stage. plan: what was done."""

    frames: NDArray[np.uint8]
    fps: float
    plan: Plan
    seconds: dict[str, float] = field(default_factory=dict)


def _alone(
    method: Callable[Concatenate[Session, Arguments], Returned],
) -> Callable[Concatenate[Session, Arguments], Returned]:
    """Refuse a call while another one is in this session, whose buffers both would write, and one after `close`."""

    @wraps(method)
    def guarded(session: Session, /, *args: Arguments.args, **words: Arguments.kwargs) -> Returned:
        if not session._lock.acquire(blocking=False):
            raise RequestError(
                "session-busy", "the session is in use by another call; open one session for each thread"
            )
        try:
            if session._closed:
                raise RequestError("session-closed", "the session has been closed; open another one")
            return method(session, *args, **words)
        finally:
            session._lock.release()

    return guarded


class Session:
    """Renders requests with one person's bundle. Used from one thread at a time: a second call at once is refused, as
    "session-busy". `close` frees the engine."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        cache: Path | None = None,
        precision: str | None = None,
        choice: Choice | None = None,
    ) -> None:
        """cache: a folder for inverted frames, which other sessions and processes may share; None for memory only.

        precision: what the engine was told, since an inverted frame is one engine's and one precision's. choice: why
        it is this engine, where "auto" was asked for.
        """
        self._lock, self._closed = threading.Lock(), False
        self.choice = choice
        self.bundle = bundle
        self.engine = engine
        self._arithmetic = f"{engine.name} {precision or 'default'}"
        # Without file hashes nothing tells one bundle's entries from another's.
        self._inverted = Inverted(cache if bundle.manifest.files else None)
        self._people: dict[str | None, tuple[Bundle, Network]] = {}
        self._network = Network(bind_own(engine, bundle))
        self._people[None] = bundle, self._network

    @classmethod
    def open(
        cls,
        folder: Path | str,
        engine: str = "auto",
        threads: int | None = None,
        precision: str | None = None,
        cache: Path | None = None,
        measured: Path | None = KEPT,
    ) -> Self:
        """Verify and open a bundle. engine: "auto" takes the one that `choose` does; the session's `choice` tells.

        measured: where figures of this machine's engines are kept, by which "auto" goes; None to measure nothing.
        Raises: BundleError, EngineError (see `Bundle.open`, `choose` and `open_engine`); RequestError "threads-range".
        """
        if threads is not None and not 1 <= threads <= 4096:
            raise RequestError("threads-range", f"threads is {threads}; it must be between 1 and 4096")
        bundle, choice = Bundle.open(folder), None
        if engine == "auto":
            choice = choose(bundle, threads, precision, measured)
            engine, precision = choice.name, choice.precision
        return cls(bundle, open_engine(engine, Path(folder), threads, precision), cache, precision, choice)

    @_alone
    def load_person(self, person: str | Path | None = None) -> None:
        """Render this person from now on: a name of the shared bundle's `persons/`, or a pack's folder; None for the
        bundle's own. Who was loaded stays in the engine's memory, so coming back binds other buffers and nothing more.

        Raises: BundleError "bundle-merged", "pack-missing", "pack-format", "pack-hash", "pack-base", "pack-weights";
        RequestError "session-busy", "session-closed".
        """
        key = None if person is None else str(person)
        if key not in self._people:
            own, _ = self._people[None]
            if own.manifest.kind != "shared" or own.folder is None:
                raise BundleError("bundle-merged", "the bundle holds one merged person; export it with --shared")
            bundle, weights = read_person(own, find_pack(own.folder, key or ""))
            self._people[key] = bundle, Network(BoundEngine(self.engine, upload_weights(self.engine, weights)))
        self.bundle, self._network = self._people[key]

    @_alone
    def unload_person(self, person: str | Path) -> None:
        """Free the memory of somebody who was loaded by this name or folder; nothing for somebody who was not. If he is
        the one rendered now, the bundle's own person is from then on.

        Raises: RequestError "session-busy", "session-closed".
        """
        left = self._people.pop(str(person), None)
        if left is not None and left[1] is self._network:
            self.bundle, self._network = self._people[None]

    def fps(self, request: Request) -> float:
        """Frames a second at which the result moves as its poses did; the training video's where they do not tell."""
        return request.poses.fps or self.bundle.manifest.fps

    def plan(self, request: Request) -> Plan:
        """What `render` would do; no network runs. Raises: RequestError, PoseError."""
        return make_plan(request, self.bundle, self.engine)

    def render(
        self,
        request: Request,
        progress: Progress = silent,
        cancel: Cancel | None = None,
        preview: Preview = unseen,
    ) -> Result:
        """`stream` a request and keep the whole video. preview: is given the frames while others are decoded.

        Raises: as `stream`.
        """
        frames = []

        def keep(first: int, part: NDArray[np.uint8]) -> None:
            frames.append(part)
            preview(first, part)

        rendered = self.stream(request, keep, progress, cancel)
        return Result(np.concatenate(frames), rendered.fps, rendered.plan, rendered.seconds)

    @_alone
    def stream(
        self, request: Request, preview: Preview, progress: Progress = silent, cancel: Cancel | None = None
    ) -> Rendered:
        """Render a request: METHOD section 3, window by window. Frames go to the preview alone, as they are decoded;
        what it raises ends the work, and the session renders on afterwards.

        The pass of a window holds the reference at index 0, as the key frame, and the window's targets behind it.
        Raises: RequestError, PoseError, EngineError "nan-latents".
        """
        plan, clock, network = self.plan(request), _Clock(), self._network
        with clock("text"):
            prompt, text = self._text(request, plan)
        for window in plan.windows:
            poses = PoseTrack.concatenate([plan.reference_pose, plan.poses[window.start : window.stop]])
            with clock("poses"):
                features = self._pose_features(poses)
            with clock("invert"):
                noise = self._noise(request, plan, features, len(poses), prompt, progress, cancel)
            with clock("edit"):
                moved = plan.motions[window.start : window.stop]
                x = edit(network.engine, noise, moved, self._factor, plan.warp, plan.keep_mean)
            with clock("sample"):
                conditions = network.conditions(text, plan.weights, features, plan.control_scale)
                x = solve(network, x, plan.sampling_steps, conditions, "sample", progress, cancel)
            with clock("decode"):
                latents = network.engine.download(x)[1:]
                decode(network, latents, request.decode_chunk, progress, cancel, preview, window.start)
        return Rendered(self.fps(request), plan, clock.seconds)

    def forget(self) -> None:
        """Forget the inverted frames that are kept in memory."""
        self._inverted.clear()

    def close(self) -> None:
        """Free the engine's memory, people's weights first. The session is not used afterwards.

        Raises: RequestError "session-busy".
        """
        if not self._closed:
            self._free()

    @_alone
    def _free(self) -> None:
        self._closed = True
        self._people.clear()
        del self._network
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _factor(self) -> int:
        return self.bundle.manifest.latents.factor

    def _text(self, request: Request, plan: Plan) -> tuple[Floats, Floats]:
        """The conditional embedding [T, D], and those of all prompts of a sampling step [B, T, D]."""
        prompt = embed(self._network, self.bundle, request.prompt, self.bundle.prompt)
        if len(plan.weights) == 1:
            return prompt, prompt[None]
        return prompt, np.stack([embed(self._network, self.bundle, request.negative_prompt, self.bundle.empty), prompt])

    def _pose_features(self, poses: PoseTrack) -> Buffer:
        return self._network.encode_poses(draw_poses(poses, style=self.bundle.manifest.pose_style))

    def _noise(
        self,
        request: Request,
        plan: Plan,
        features: Buffer,
        frames: int,
        prompt: Floats,
        progress: Progress,
        cancel: Cancel | None,
    ) -> Buffer:
        """Where sampling starts, in the engine's memory: every copy inverted, float32 [F, L, h, w]; or one frame that
        all start from, [1, L, h, w], inverted once or plain noise."""
        latents, upload = self.bundle.latents[plan.reference], self.engine.upload
        if plan.inversion is None:
            return upload(shared_noise(latents.shape, request.seed))
        if plan.inversion == "target":
            return invert(self._network, latents, features, frames, prompt, plan, progress, cancel)
        key = inversion_key(self.bundle.manifest, self._arithmetic, plan, prompt)
        kept = self._inverted.get(key, (1, *latents.shape))
        if kept is not None:
            return upload(kept)
        alone = self._pose_features(plan.reference_pose)
        noise = invert(self._network, latents, alone, 1, prompt, plan, progress, cancel)
        self._inverted.put(key, self.engine.download(noise))
        return noise


class _Clock:
    """Seconds per stage, added up over windows."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
