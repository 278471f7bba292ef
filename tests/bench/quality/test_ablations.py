"""Each ablation turns something off: it renders, and what it renders is another picture."""

from __future__ import annotations

import numpy as np
import pytest

from posecrafter.bench.quality.ablations import FULL, VARIANTS, Variant
from posecrafter.export.run import Run
from posecrafter.pose import PoseTrack
from posecrafter.runtime import Request


@pytest.fixture(scope="module")
def run(tiny_run) -> Run:
    return Run.read(tiny_run)


@pytest.fixture(scope="module")
def request_(run) -> Request:
    # The nearest training frame, 4, is neither frame 0 nor the one that seed 0 draws; the last target is a cell aside,
    # so that its face moves.
    aside = np.array([0, 0, 9], np.float32)[:, None, None]
    poses = PoseTrack(run.poses.xy[[4, 4, 4]] + aside, run.poses.score[[4, 4, 4]], run.poses.width, run.poses.height)
    return Request(poses=poses, steps=2, guidance=1.0, inversion_iterations=2, keep_mean=True)


def render(variant: Variant, run: Run, request: Request) -> np.ndarray:
    request = Request(**{**vars(request), **(variant.request or {})})
    with variant.session(run) as session:
        return variant.render(session, request)


@pytest.fixture(scope="module")
def whole(run, request_) -> np.ndarray:
    return render(VARIANTS[FULL], run, request_)


# The tiny run's decoder is the base's own: nothing was adapted, so nothing can be taken away.
@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in (FULL, "decoder not adapted")])
def test_without_a_part_of_the_method_the_picture_is_another(run, request_, whole, name):
    frames = render(VARIANTS[name], run, request_)
    assert frames.shape == whole.shape
    assert (frames != whole).any()


def test_the_method_renders_the_same_twice(run, request_, whole):
    assert np.array_equal(render(VARIANTS[FULL], run, request_), whole)


def test_only_what_changes_the_network_is_tuned_anew():
    retuned = {name for name, variant in VARIANTS.items() if variant.retuned}
    assert retuned == {"no temporal attention", "own-frame attention"}
