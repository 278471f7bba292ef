"""Sizes on the command line."""

from __future__ import annotations

import re

from posecrafter.errors import RequestError


def parse_size(option: str, text: str) -> tuple[int, int]:
    """ "512x320" -> (512, 320). Raises RequestError size-syntax."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})[xX]([1-9][0-9]{0,4})", text)
    if match is None:
        raise RequestError("size-syntax", f"{option} {text} is not a size; write WIDTHxHEIGHT, for example 512x512")
    return int(match[1]), int(match[2])
