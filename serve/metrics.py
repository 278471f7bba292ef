"""What a service counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """One service's, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = of = CollectorRegistry()
        self.requests = Counter("posecrafter_requests", "By their end: done, or an error's code.", ["end"], registry=of)
        self.frames = Counter("posecrafter_frames", "Frames rendered.", registry=of)
        self.open = Gauge("posecrafter_open_requests", "Requests that wait or are rendered.", registry=of)
        self.seconds = Histogram(
            "posecrafter_stage_seconds",
            "Seconds of a request by stage; wait: in the queue.",
            ["stage"],
            buckets=_SECONDS,
            registry=of,
        )
