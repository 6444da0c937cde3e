"""What runs inside Celery beat: the scheduler that makes due things happen; law: a tick makes work ready and never does it.

May import everything below the roof of `orchestrator`, and `schemas`; never `workers`. Only the roof imports it.
"""
