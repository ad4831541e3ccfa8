"""Other people's tools with this project's numbers in them; each is imported by its own name."""
