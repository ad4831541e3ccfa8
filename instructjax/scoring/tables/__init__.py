"""Score tables: their columns, and the files they are written to and read from."""
