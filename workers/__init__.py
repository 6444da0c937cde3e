"""What runs inside a Celery worker: the pool, the consumer, turns, activities and hosted agents; law: a worker may die at any line.

May import everything below the roof of `orchestrator`, and `schemas`; never `beat`. Only the roof imports it.
"""
