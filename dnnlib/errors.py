# SPDX-License-Identifier: Apache-2.0
"""The exception for mistakes of the user."""


class UserError(Exception):
    """A mistake that the user can fix. The message is one sentence: what is wrong, where, and which flag to change.

    Scripts print the message without a traceback and exit with status 2.
    """
