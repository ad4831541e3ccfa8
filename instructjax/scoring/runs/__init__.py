"""A run over many rows: read ahead, cut into chunks, scored as a stream, kept as parts on disk."""
