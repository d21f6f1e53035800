"""Where data are stored, and what is said while a reproduction works."""

import sys
from pathlib import Path


def places_of(texts):
    """{name of a data set: Path} of texts NAME=PATH. Raises ValueError where one is none."""
    places = dict(text.split("=", 1) for text in texts if "=" in text)
    if len(places) < len(texts) or not places.keys() <= {"cifar10", "svhn"}:
        raise ValueError("expected cifar10=PATH or svhn=PATH")
    return {name: Path(path) for name, path in places.items()}


def placed(config, places):
    """A DataConfig with the place where its data are stored."""
    return config.model_copy(update={"path": places.get(config.name)})


def say(text):
    """Print a message at once."""
    print(text, file=sys.stderr, flush=True)
