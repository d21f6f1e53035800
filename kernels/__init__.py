"""CUDA sources, compiled when they are first launched; `README.md` is the table of them."""
