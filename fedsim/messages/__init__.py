"""Messages under way: their bytes, their sums, and their mixing among neighbours."""
