"""What determines a result, and how it is executed; ``config`` has its YAML form."""
