"""Settings that determine a result, and those of its execution; ``config`` converts them to and from YAML."""
