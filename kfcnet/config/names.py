"""The names of a network's layers, of a configuration and of plain mappings alike."""

from collections import Counter
from collections.abc import Iterable, Mapping


def layer_names(layers: Iterable[Mapping]) -> list[str]:
    """Names of layers, each a mapping with the key `layer` and an optional `name`.

    A layer without a name has its kind and its number among the layers of this kind: conv1.
    """
    names: list[str] = []
    counts: Counter[str] = Counter()
    for layer in layers:
        kind = layer["layer"]
        counts[kind] += 1
        names.append(layer.get("name") or f"{kind}{counts[kind]}")
    return names


def affine_name(name: str) -> str:
    """Name of the scale and shift that the batch normalisation `name` learns."""
    return f"{name}_affine"
