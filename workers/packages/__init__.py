"""Agent packages that come with us; law: a package imports `orchestrator.agent` and libraries, and else of ours only what starts processes.

A folder has a module with a subclass of `Agent`, or an `agent.toml` that says what to start; folders that begin with `_` are no packages.
A child among them is a program that runs without the rest of this project.
"""
