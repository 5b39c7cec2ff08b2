# SPDX-License-Identifier: Apache-2.0
"""The exception for mistakes of the user."""

from dnnlib.text import printable

_LONGEST_MESSAGE = 4000


class UserError(Exception):
    """A mistake that the user can fix. The message is one sentence: what is wrong, where, and which flag to change.

    Scripts print the message without a traceback and exit with status 2. As text it is printable and of limited length
    whatever files and servers contributed to it: control characters could rewrite the terminal.
    """

    def __str__(self) -> str:
        lines = super().__str__()[: _LONGEST_MESSAGE + 1].split("\n")
        return "\n".join(printable(line, _LONGEST_MESSAGE) for line in lines)
