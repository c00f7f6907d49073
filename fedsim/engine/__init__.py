"""One round in this process: the model as a flat vector, local work, and clients one by one or in blocks."""
