"""`python -m orchestrator`: the command line, where its script is not on the path."""

from orchestrator.cli import main

main()
