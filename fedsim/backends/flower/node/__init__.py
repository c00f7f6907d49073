"""A node of a deployment: one client, with its own data and its own memory."""
