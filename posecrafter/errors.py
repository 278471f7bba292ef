"""Every error a user can cause or meet: a stable code and one line that says what to do next."""

from __future__ import annotations


class PoseCrafterError(Exception):
    """An error with a stable kebab-case `code` (part of the interface) and a one-line `message` that holds the cure."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class RequestError(PoseCrafterError):
    """What was asked for is out of range or contradicts itself."""


class BundleError(PoseCrafterError):
    """A bundle is incomplete, altered, or of another format version."""


class EngineError(PoseCrafterError):
    """An inference engine is missing, cannot load a graph, or produced numbers that are not finite."""


class PoseError(PoseCrafterError):
    """Key points are missing, malformed, or do not fit the request."""


class VideoError(PoseCrafterError):
    """A video file cannot be read or written."""


class BaseModelError(PoseCrafterError):
    """A base model lacks a component or has an unsupported configuration."""


class TrainingError(PoseCrafterError):
    """Fine-tuning cannot start, resume or go on."""


class ExportError(PoseCrafterError):
    """A run cannot be exported: unfinished, out of range, or different from PyTorch once exported."""
