"""Plans of a task on devices that need not be there: does it fit, how fast, on what."""
