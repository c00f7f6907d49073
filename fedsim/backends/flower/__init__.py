"""Deployment of unchanged algorithms on real clients through Flower: ``server`` and ``node`` share ``protocol``, and
``deploy`` starts both. Only ``server``, ``node`` and ``protocol.calls`` import the package flwr.
"""
