"""PoseCrafter: personalised, pose-driven video from one clip of a person."""

__version__ = "0.1.0"
