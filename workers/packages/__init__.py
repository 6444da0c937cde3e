"""Agent packages that come with us, a folder each; law: a package imports `orchestrator.agent` and libraries, and nothing else of ours.

A folder has a module with a subclass of `Agent`; folders that begin with `_` are no packages.
"""
