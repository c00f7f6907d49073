"""The server of a deployment: the controller's host and backend whose clients are behind Flower."""
