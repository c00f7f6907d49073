"""Node of a deployment, one client: ``client_app`` passes calls to a persistent ``worker``, which runs ``answer`` on
the node's own data and memory.
"""
