# SPDX-License-Identifier: Apache-2.0
"""The one exception that speaks to the user."""


class UserError(Exception):
    """A mistake the user can mend: one sentence that says what, where, and which flag or file mends it.

    Scripts print the sentence and exit with status 2; no traceback is shown.
    """
