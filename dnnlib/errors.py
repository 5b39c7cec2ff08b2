# SPDX-License-Identifier: Apache-2.0
"""The exception for mistakes of the user, and the sentence for packages that are not installed."""

import sys

from dnnlib.text import printable

_LONGEST_MESSAGE = 4000
_REQUIRED = ("PIL", "click", "imageio", "numpy", "psutil", "pyspng", "requests", "scipy", "torch")


class UserError(Exception):
    """A mistake that the user can fix. The message is one sentence: what is wrong, where, and which flag to change.

    Scripts print the message without a traceback and exit with status 2. As text it is printable and of limited length
    whatever files and servers contributed to it: control characters could rewrite the terminal.
    """

    def __str__(self) -> str:
        lines = super().__str__()[: _LONGEST_MESSAGE + 1].split("\n")
        return "\n".join(printable(line, _LONGEST_MESSAGE) for line in lines)


def not_installed(error: ModuleNotFoundError) -> str | None:
    """One sentence if the module that was not found is a package that every installation of the project has."""
    if error.name not in _REQUIRED:
        return None
    package = {"PIL": "pillow"}.get(error.name, error.name)
    return (
        f"The package {package} is not installed for {printable(sys.executable, 1000)}: activate the project's "
        f"environment (make setup, once; source .venv/bin/activate, in every shell) or pip install {package}."
    )
