"""How many outputs a window has along one side of an image."""


def output_size(size, kernel, stride, padding):
    """Positions of a convolution's kernel; below one where it does not fit."""
    return (size + 2 * padding - kernel) // stride + 1


def pooled_size(size, window, stride):
    """Pooling windows: every one starts inside the image, the last may hang over (cuda-convnet)."""
    return max(0, -(-(size - window) // stride)) + 1
