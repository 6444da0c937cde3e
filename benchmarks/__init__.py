"""Ours beside its peers on one machine in one run; law: only ratios count, and nothing is counted that was not really done.

`python -m benchmarks` starts its own servers, gives each peer a fresh database and broker, and lets them take turns. The peers are adapters
in `peers/`, each in a process of its own; a workload is a file with a `run` of a few lines. May import all of the project; nothing imports it.
"""
