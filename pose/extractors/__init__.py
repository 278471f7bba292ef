"""Scripts that run inside a pose estimator's own environment; none of them imports posecrafter."""
