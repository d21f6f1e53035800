"""Where data are stored, and what is said while a reproduction works."""

import sys


def placed(config, places):
    """A DataConfig with the place where its data are stored."""
    return config.model_copy(update={"path": places.get(config.name)})


def say(text):
    """Print a message at once."""
    print(text, file=sys.stderr, flush=True)
