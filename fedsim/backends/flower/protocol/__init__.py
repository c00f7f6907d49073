"""What the server and the nodes of a deployment agree on: calls, forms of messages, versions, settings."""
