"""The streams that a run is shown on."""

from tqdm.utils import ObjectWrapper


class Output(ObjectWrapper):
    """A stream that a run can do without: what cannot be written is dropped.

    So it is on a full disk, after the program has closed the stream, and where the program's own
    object has no such method. The records of a run have all the same. A pipe without a reader still
    raises BrokenPipeError, which ends the run.
    """

    def write(self, text):
        self._attempt("write", text)

    def flush(self):
        self._attempt("flush")

    def isatty(self):
        return bool(self._attempt("isatty"))

    def __eq__(self, other):
        """tqdm looks whether two bars and texts go to one terminal."""
        return self._wrapped == getattr(other, "_wrapped", other)

    def _attempt(self, name, *arguments):
        try:
            return getattr(self._wrapped, name)(*arguments)
        except BrokenPipeError:
            raise
        except (OSError, ValueError, AttributeError):
            return None
