from __future__ import annotations

from pathlib import Path

import pytest

from posecrafter.bench.speed import material


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sub-commands that were run; each writes the last file of what it makes."""
    words_of: list[str] = []

    def posecrafter(*words: object) -> None:
        words_of.append(str(words[0]))
        made = Path(str(words[words.index("--out") + 1]))
        made.mkdir(exist_ok=True)
        (made / {"finetune": "run.json", "export": "manifest.json"}[words_of[-1]]).write_text("{}")

    monkeypatch.setattr(material, "_posecrafter", posecrafter)
    monkeypatch.setattr(material, "rendered_clip", lambda work: (work / "clip.mp4", work / "clip.json", "a person"))
    monkeypatch.setattr(material, "commit_of", lambda _: "first")
    return words_of


def test_material_is_made_once_a_commit_and_size(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        assert material.prepare(tmp_path / "work", 128) == (tmp_path / "work/run-128", tmp_path / "work/bundle-128")
    assert asked == ["finetune", "export"]
    material.prepare(tmp_path / "work", 256)
    assert asked == ["finetune", "export"] * 2
    monkeypatch.setattr(material, "commit_of", lambda _: "second")
    for size in (128, 256, 128, 256):
        material.prepare(tmp_path / "work", size)
    assert asked == ["finetune", "export"] * 4


def test_material_of_a_commit_that_left_no_mark_is_made_anew(asked: list[str], tmp_path: Path) -> None:
    material.prepare(tmp_path, 128)
    (tmp_path / "commit-128").unlink()
    material.prepare(tmp_path, 128)
    assert asked == ["finetune", "export"] * 2


def test_an_interrupted_change_of_commit_leaves_no_mark_of_the_one_before(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    material.prepare(tmp_path, 128)
    make = material._posecrafter

    def interrupted(*words: object) -> None:
        if words[0] == "export":
            raise KeyboardInterrupt
        make(*words)

    monkeypatch.setattr(material, "commit_of", lambda _: "second")
    monkeypatch.setattr(material, "_posecrafter", interrupted)
    with pytest.raises(KeyboardInterrupt):
        material.prepare(tmp_path, 128)
    monkeypatch.setattr(material, "commit_of", lambda _: "first")
    monkeypatch.setattr(material, "_posecrafter", make)
    material.prepare(tmp_path, 128)
    assert asked == ["finetune", "export", "finetune", "finetune", "export"]
