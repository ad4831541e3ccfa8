"""The command line: one file a verb, its options apart from its work so that help is fast."""
