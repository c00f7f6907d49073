"""The server of a deployment; experiments are looked for in this folder."""

from pathlib import Path

from fedsim.backends.flower.server.server_app import server_app

app = server_app(Path(__file__).parent)
