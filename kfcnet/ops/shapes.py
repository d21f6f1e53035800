"""How many outputs windows have along the sides of an image."""


def ceil_div(count, size):
    """How many parts of `size` hold `count`."""
    return -(-count // size)


def output_size(size, kernel, stride, padding):
    """Positions of a convolution's kernel along one side; below one where it does not fit."""
    return (size + 2 * padding - kernel) // stride + 1


def output_sides(shape, kernel, stride, padding):
    """(Ho, Wo) of a convolution of images (M, H, W, J)."""
    return tuple(output_size(side, kernel, stride, padding) for side in shape[1:3])


def pooled_size(size, window, stride):
    """Pooling windows: every one starts inside the image, the last may hang over (cuda-convnet)."""
    return max(0, ceil_div(size - window, stride)) + 1


def pooled_shape(shape, window, stride):
    """(M, Ho, Wo, J) of images (M, H, W, J) that are pooled."""
    M, H, W, J = shape
    return M, pooled_size(H, window, stride), pooled_size(W, window, stride), J
