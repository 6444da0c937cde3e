"""The pure core: decides what happens next from values alone; law: no I/O, no clock, no SQL, no Celery.

May import `schemas`, `orchestrator.errors` and itself. Everybody above may import it.
"""
