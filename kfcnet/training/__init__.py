"""Training: the loop, evaluation and what surrounds them."""
