"""A bundle as an HTTP service: poses in, a video out while it is made."""

from posecrafter.serve.app import make_app
from posecrafter.serve.service import Job, Service, warm

__all__ = ["Job", "Service", "make_app", "warm"]
