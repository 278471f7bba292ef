"""`python -m posecrafter`: the command line."""

from posecrafter.cli import main

main()
