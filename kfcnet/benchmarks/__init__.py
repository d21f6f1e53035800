"""Speed: training steps and primitives, beside those of PyTorch and of the libraries."""
