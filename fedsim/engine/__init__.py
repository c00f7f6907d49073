"""One round in this process: the model as a flat vector, local work, and clients run one by one or in blocks."""
