"""The work of the commands: silent functions that return results, and the only place where the rooms meet."""
