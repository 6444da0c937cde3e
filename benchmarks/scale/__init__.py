"""What the engine costs when there is much of something: `./dev bench scale`, written to benchmarks/SCALE.md.

A probe is a module with one question; a figure belongs to this machine, so what is promised of it is a ratio or a share.
"""
