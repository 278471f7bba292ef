from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from posecrafter.peak import peak_mib


def test_the_peak_of_a_child_that_filled_its_memory_is_that_memory_on_this_system() -> None:
    program = (
        "import resource; from posecrafter.peak import peak_mib; full = bytearray(300 * 2**20); "
        "print(peak_mib(resource.getrusage(resource.RUSAGE_SELF)))"
    )
    # A shell between, since Linux counts what a process was before it became another program: these tests, with all
    # that they hold.
    words = ["sh", "-c", '"$0" "$@"; exit $?', sys.executable, "-c", program]
    done = subprocess.run(words, capture_output=True, check=True)
    assert 300 < float(done.stdout) < 600


@pytest.mark.parametrize(("platform", "unit"), [("linux", 2**10), ("darwin", 2**20)])
def test_macos_counts_in_bytes_and_linux_in_kib(platform: str, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    monkeypatch.setattr(sys, "platform", platform)
    assert peak_mib(used) == used.ru_maxrss / unit
