"""Messages in transit: their size in bytes, their sums, and their mixing among neighbours."""
