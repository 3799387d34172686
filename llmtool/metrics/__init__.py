"""Evidence that adds over batches, and the figures taken from it: one tally for each kind of problem."""
