"""Evidence that adds over batches, and the figures taken from it: one tally for each kind of problem."""

from typing import Literal

# Of each kind of targets, the figure that is spoken of first.
HEADLINE = {"classes": "accuracy", "labels": "mean_average_precision", "values": "rmse", "next_token": "loss"}
LESS_IS_BETTER = {"log_loss", "mae", "rmse", "rmse_log", "loss", "perplexity", "bits_per_byte"}
LESS_IS_BETTER |= {"byte_perplexity", "word_perplexity", "lost", "illegal", "hamming_loss"}


def direction(figure: str) -> Literal["min", "max"]:
    """Whether less or more of a figure is better."""
    return "min" if figure in LESS_IS_BETTER else "max"
