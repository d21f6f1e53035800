"""The error of a device that is asked for and is not there."""


class DeviceError(RuntimeError):
    """A device, driver or extension is missing; the message says what, and the way out."""

    exit_status = 2
