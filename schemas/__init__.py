"""The words of the project: frozen records that processes, stores and people exchange; law: they import nothing of ours.

Everybody may import them. A record here has no behaviour beyond its own validity.
"""
