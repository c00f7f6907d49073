"""Clients in the actors of a Ray session, on one machine or a cluster: read ``ray_host``, ``ray_backend``, ``actor``.
Only ``session`` imports Ray, and only when it is called.
"""
