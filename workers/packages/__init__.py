"""Agent packages that come with us, a folder each; law: a package imports `orchestrator.agent` and libraries, and nothing else of ours.

A folder has a module with a subclass of `Agent`, or an `agent.toml` that says what to start; folders that begin with `_` are no packages.
A child among them is a program that runs without the rest of this project.
"""
