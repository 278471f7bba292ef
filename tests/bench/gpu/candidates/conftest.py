"""Triton's interpreter, mended as for the kernels' own tests; it knows of no grid but the one that runs."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton, which is made for Linux")

from posecrafter.bench.gpu.candidates import group_norm_early

runpy.run_path(str(Path(__file__).parents[3] / "kernels/conftest.py"))


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gdc_wait", "gdc_launch_dependents"):
        monkeypatch.setattr(group_norm_early, name, lambda: None)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN, so that whatever a kernel leaves out shows, and whatever it reads too early."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        make = getattr(owner, name)

        def poison(*args: Any, make: Any = make, **options: Any) -> torch.Tensor:
            made = make(*args, **options)
            return made.fill_(float("nan")) if made.is_floating_point() else made

        monkeypatch.setattr(owner, name, poison)
