"""The commands of the command line, a module each, imported when their command is called; law: a command prints, everything else decides.

Part of the roof: may import everything. Nobody imports a command but `orchestrator.cli`, by name, from its table.
"""
