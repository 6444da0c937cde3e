"""The processes of agents: start, pipes, watch, end; law: nothing of an agent outlives its host, and no agent can block or fill it.

`Processes` is the face. Only this package starts processes in a worker; whoever hosts agents gives it a `Sink` and calls it from any thread.
"""

from workers.child.host import Processes
from workers.child.launch import Launch, launch_of
from workers.child.logs import tail
from workers.child.reports import Exit, Flushed, Running, Sequenced, Sink, Started

__all__ = ["Exit", "Flushed", "Launch", "Processes", "Running", "Sequenced", "Sink", "Started", "launch_of", "tail"]
