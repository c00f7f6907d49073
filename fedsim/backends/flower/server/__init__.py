"""Server of a deployment: ``server_app`` runs the controller on ``flower_host``, whose ``flower_backend`` calls clients
through ``transport``.
"""
