"""Parsing a command's arguments, and messages of one line about wrong ones."""

import argparse

from kfcnet.config import config_names, setting_key
from kfcnet.ranks import is_first_started, of_all


class Parser(argparse.ArgumentParser):
    """Ends with status 2 and one line for wrong arguments, with what may have been meant.

    Of several processes, which all have the same arguments, the first one prints.
    """

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, **settings)
        self._required_options = []

    def require(self, option, **settings):
        """An option that must be given. It is asked for last: what is wrong beside it says more."""
        self._required_options.append(self.add_argument(option, **settings))

    def parse_args(self, args=None, namespace=None):
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            hint = meant(unknown) if self._takes("--set") else ""
            self.error(f"{unknown[0]}: no such argument{hint}")
        for action in self._required_options:
            if getattr(options, action.dest) is None:
                self.error(f"{action.option_strings[0]} {action.metavar} is missing")
        return options

    def error(self, message):
        self.exit(2, f"error: {message} (`{self.prog} --help` lists the options)\n")

    def exit(self, status=0, message=None):
        try:
            super().exit(status, message)
        except SystemExit as end:
            raise of_all(end) from None

    def _print_message(self, message, file=None):
        if is_first_started():
            super()._print_message(message, file)

    def _takes(self, option):
        return option in self._option_string_actions


def meant(arguments):
    """End of a message: what the first of some unknown arguments may have been meant as, or ""."""
    first, *others = arguments
    if first.removesuffix(".yaml") in config_names() or first.endswith((".yaml", ".yml")):
        return f"; did you mean --config {first}?"
    name, equals, value = first.lstrip("-").partition("=")
    name = name.replace("-", "_")
    key = setting_key(name)
    if key is None:
        return ""
    if not equals and others and not others[0].startswith("--"):
        value = others[0]
    return f"; did you mean --set {key}={value or 'VALUE'}?"
