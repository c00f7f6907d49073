"""A client of a deployment; ``--node-config`` says which one, and where its data is."""

from fedsim.backends.flower.node.client_app import client_app

app = client_app()
