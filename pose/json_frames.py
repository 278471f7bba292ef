"""The frames of a pose file one by one: of a list of any length, no more than a piece of its text is in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from posecrafter.errors import PoseError

CHUNK = 1 << 18
_SPACE = re.compile(r"[ \t\r\n]*")
# What decides where an object ends; a quote alone begins a string whose end is not read yet.
_MARK = re.compile(r'"(?:[^"\\]|\\.)*"|["{}\[\]]', re.DOTALL)


class _Irregular(ValueError):
    """Not a list of objects: the text has to be looked at as a whole."""


def frames_of(path: Path) -> Iterator[Any]:
    """The parsed items of a file with a list, or its single object. Raises PoseError poses-json: no JSON, with line and
    column; no frames."""
    count = 0
    try:
        for item in _streamed(path):
            yield item
            count += 1
    except (ValueError, RecursionError):
        content = _whole(path)
        items = [content] if isinstance(content, dict) else content
        if not isinstance(items, list):
            items = []
        yield from items[count:]
        count = len(items)
    if not count:
        raise PoseError("poses-json", f"{path} holds no frame; OpenPose JSON is a frame object or a list of them")


def frames_in(file: TextIO, name: str, largest: int) -> Iterator[Any]:
    """The parsed items of a list, or a single object, in a text that anybody may have sent: nothing is parsed but
    objects of about `largest` characters at most. Raises PoseError poses-json, where `name` stands for the text."""
    text, count = _Text(file, largest), 0
    try:
        for item in [text.take_object()] if text.peek() == "{" else _listed(text):
            yield item
            count += 1
        if text.peek():
            raise _Irregular("more follows")
    except (ValueError, RecursionError) as error:
        why = str(error) or f"no object of at most {largest >> 10} KiB"
        raise PoseError(
            "poses-json", f"{name}, frame {count}: {why}; OpenPose JSON is a frame object or a list of them"
        ) from error


def is_list(path: Path) -> bool:
    """Whether the file's JSON is a list, by its first character."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return _Text(file).peek() == "["


class _Text:
    """A text that is read as far as needed, and forgotten behind `at`."""

    def __init__(self, file: TextIO, largest: int | None = None) -> None:
        """largest: characters of an object, give or take a chunk; None for any number."""
        self.file, self.largest = file, largest
        self.text = ""
        self.at = 0

    def more(self) -> bool:
        """Read on; False at the end."""
        chunk = self.file.read(CHUNK)
        self.text, self.at = self.text[self.at :] + chunk, 0
        return bool(chunk)

    def peek(self) -> str:
        """The next character that is no space, "" at the end."""
        while True:
            space = _SPACE.match(self.text, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self, expected: str) -> str:
        """Step over the next character that is no space. Raises _Irregular if it is not among `expected`."""
        found = self.peek()
        if not found or found not in expected:
            raise _Irregular
        self.at += 1
        return found

    def take_object(self) -> Any:
        """Parse the object that begins here. Raises _Irregular (none does, or it has no end), json.JSONDecodeError."""
        if self.peek() != "{":
            raise _Irregular
        depth, scanned = 0, self.at
        while True:
            for found in _MARK.finditer(self.text, scanned):
                mark = found.group()
                if mark == '"':
                    scanned = found.start()
                    break
                depth += (mark in "{[") - (mark in "}]")
                if depth == 0 and mark in "}]":
                    text, self.at = self.text[self.at : found.end()], found.end()
                    return json.loads(text)
            else:
                scanned = len(self.text)
            scanned -= self.at
            if self.largest is not None and len(self.text) - self.at > self.largest:
                raise _Irregular
            if not self.more():
                raise _Irregular


def _streamed(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as file:
        text = _Text(file)
        yield from _listed(text)
        if text.peek():
            raise _Irregular


def _listed(text: _Text) -> Iterator[Any]:
    text.take("[")
    while True:
        yield text.take_object()
        if text.take(",]") == "]":
            return


def _whole(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text)
    except json.JSONDecodeError as error:
        line, column, what = error.lineno, error.colno, error.msg
        comma = _trailing_comma(error.doc, error.pos)
        if comma is not None:
            line, column = error.doc.count("\n", 0, comma) + 1, comma - error.doc.rfind("\n", 0, comma)
            what = "a comma with nothing after it; delete it"
        raise PoseError("poses-json", f"{path}, line {line}, column {column}: not valid JSON ({what})") from error
    except (ValueError, RecursionError) as error:
        raise PoseError("poses-json", f"{path} is not a JSON text of poses ({type(error).__name__})") from error


def _trailing_comma(text: str, position: int) -> int | None:
    """Where the comma is, if an error at `position` (the comma, or the bracket after it) is one too many."""
    before = text[: position + 1].rstrip()
    if before.endswith(("]", "}")):
        before = before[:-1].rstrip()
    after = text[len(before) :].lstrip()
    return len(before) - 1 if before.endswith(",") and after.startswith(("]", "}")) else None
