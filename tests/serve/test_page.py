"""The page holds together with itself and with the service; what it does in a browser is tried by hand."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from posecrafter.pose import read_poses
from posecrafter.pose.recipe import edit, parse_step
from posecrafter.serve.app import PAGE


class Tags(HTMLParser):
    """Every tag's attributes, and the script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_the_service_shows_it(client: httpx.Client, page: str) -> None:
    answer = client.get("/")
    assert answer.text == page
    assert answer.headers["content-type"].startswith("text/html")


def test_it_loads_nothing_from_elsewhere(page: str) -> None:
    assert "//" not in re.sub(r"^\s*//.*|\s//\s.*", "", page, flags=re.MULTILINE)


def test_its_script_asks_for_paths_that_there_are(client: httpx.Client, page: str) -> None:
    asked = set(re.findall(r"v1/\w+", page))
    assert asked == {"v1/bundle", "v1/poses", "v1/videos"}
    assert {f"/{path}" for path in asked} <= set(client.get("/openapi.json").json()["paths"])


def test_its_script_uses_elements_that_there_are(page: str) -> None:
    elements = {values["id"] for _, values in Tags(page).tags if "id" in values}
    used = set(re.findall(r'at\("(\w+)"\)', page))
    assert len(used) > 10
    assert used <= elements


def test_its_motions_are_operations_on_anybodys_poses(tiny_bundle: Path, page: str) -> None:
    person = read_poses(tiny_bundle / "person" / "poses.json")
    motions = [values["value"] for tag, values in Tags(page).tags if tag == "option"]
    recipes = [motion for motion in motions if motion not in ("", "file")]
    assert len(recipes) >= 4
    for recipe in recipes:
        made = edit(person, [parse_step(step, folder=None) for step in recipe.split("|")])
        assert (made.xy != made.xy[0]).any()
