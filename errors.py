"""The one exception that means "the input is wrong", as opposed to "the program is wrong"."""


class InputError(ValueError):
    """Bad input from the user: a file, an option, a name, a device.

    The message is one line that states what was found, where (file and line), what was expected and what to do.
    The command line prints it after ``error:`` and exits with status 2.
    """
