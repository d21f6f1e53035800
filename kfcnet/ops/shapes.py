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


def pooled_size(size, window, stride, clipped=True):
    """Pooling windows: all that cover a pixel of their own, clipped at the border (cuda-convnet).

    Without `clipped` only those that lie inside; below one where none does.
    """
    if clipped:
        return max(0, ceil_div(size - window, stride)) + 1
    return (size - window) // stride + 1


def pooled_shape(shape, window, stride, clipped=True):
    """(M, Ho, Wo, J) of images (M, H, W, J) that are pooled."""
    M, H, W, J = shape
    sides = (pooled_size(side, window, stride, clipped) for side in (H, W))
    return M, *sides, J
