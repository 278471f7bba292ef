"""How many cores a process may keep busy: Linux's affinity, a container's limit, and systems that have neither."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from posecrafter import cores


def system(root: Path, files: Mapping[str, str]) -> Path:
    """A file system with these files."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/docker/unseen\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        (
            {
                "proc/self/cgroup": "0::/pod/container\n",
                "sys/fs/cgroup/pod/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/pod/container/cpu.max": "400000 100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/a\n4:cpu,cpuacct:/a\n0::/\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "what is this\n"}, None),
    ],
)
def test_a_control_groups_limit_is_told_in_whole_cores(tmp_path: Path, files: dict[str, str], granted: int) -> None:
    assert cores.granted_cores(system(tmp_path, files)) == granted


@pytest.mark.parametrize(("granted", "usable", "limited"), [(None, 8, None), (2, 2, 2), (8, 8, None), (64, 8, None)])
def test_a_limit_counts_where_it_is_less_than_the_cores(
    granted: int | None, usable: int, limited: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "granted_cores", lambda: granted)
    assert (cores.usable_cores(), cores.limited_cores()) == (usable, limited)


@pytest.mark.parametrize(("told", "usable"), [(10, 10), (None, 1)])
def test_a_system_without_affinity_and_proc_has_all_its_cores(
    told: int | None, usable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: told)
    granted = cores.granted_cores
    monkeypatch.setattr(cores, "granted_cores", lambda: granted(tmp_path))
    assert (cores.usable_cores(), cores.limited_cores()) == (usable, None)
