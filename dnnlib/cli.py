# SPDX-License-Identifier: Apache-2.0
"""Shared by the command-line scripts: the entry point and the value types of flags. Imports only click.

Scripts import click from here, so that without it they end with a sentence.
"""

import atexit
import contextlib
import gc
import math
import re
import sys
from collections.abc import Iterator
from typing import NoReturn

from dnnlib import launcher
from dnnlib.errors import UserError, not_installed
from dnnlib.files import full_disk_is_a_user_error
from dnnlib.text import printable


@contextlib.contextmanager
def missing_package_exits() -> Iterator[None]:
    """Inside, an import of a required package that is not installed exits with status 2 and one sentence on stderr."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not_installed(error) is None:
            raise
        print(f"Error: {not_installed(error)}", file=sys.stderr)
        sys.exit(2)


with missing_package_exits():
    import click

_MOST_NUMBERS = 1_000_000


def run(command: click.Command) -> NoReturn:
    """Run a click command as a script and exit the process.

    Status 0 on success; 2 after a wrong flag, a UserError, a full disk or without a package such as PyTorch, with one
    sentence on stderr; 130 after Ctrl-C, without a message. Names of flags may be written with underscores for dashes.
    """
    # The objects that packages make while they are imported are not garbage: looking for it less often loads PyTorch a
    # fifth faster, and not looking for it at the end saves half a second.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    try:
        with full_disk_is_a_user_error(), missing_package_exits():
            result = command.main(standalone_mode=False, token_normalize_func=lambda name: name.replace("_", "-"))
    except UserError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        place = launcher.place()
        if place is None or place.rank == 0:  # of several processes with the same command line, one says it
            error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(result if isinstance(result, int) else 0)


class _Bool(click.ParamType):
    name = "bool"
    _values = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}

    def convert(self, value, param, ctx) -> bool:
        """The truth value of a word."""
        if isinstance(value, bool):
            return value
        key = str(value).strip().lower()
        if key not in self._values:
            self.fail(f"{value!r} is not one of 1, 0, true, false, yes, no, on, off", param, ctx)
        return self._values[key]


class _IntList(click.ParamType):
    name = "list"

    def convert(self, value, param, ctx) -> list[int]:
        """The numbers in the given order, with ranges expanded."""
        if isinstance(value, list):
            return value
        numbers: list[int] = []
        for item in str(value).split(","):
            match = re.fullmatch(r"\s*(\d{1,18})\s*(?:-\s*(\d{1,18})\s*)?", item)
            if match is None:
                self.fail(f"{printable(value)!r} is not a list of integers and ranges such as 1,2,5-7", param, ctx)
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                self.fail(f"the range {item.strip()} in {printable(value)!r} runs backwards", param, ctx)
            if len(numbers) + last - first >= _MOST_NUMBERS:
                self.fail(f"{printable(value)!r} has more than {_MOST_NUMBERS} numbers", param, ctx)
            numbers.extend(range(first, last + 1))
        return numbers


class _FiniteFloat(click.types.FloatParamType):
    def convert(self, value, param, ctx) -> float:
        """The number; nan and inf are refused."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class _Class(click.ParamType):
    name = "class"

    def convert(self, value, param, ctx) -> int | str:
        """A number, or the name of a class."""
        if isinstance(value, int):
            return value
        if not value.strip():
            self.fail("it is empty: give the number or the name of a class", param, ctx)
        return int(value) if re.fullmatch(r"\s*[0-9]{1,9}\s*", value) else value


class _Classes(_Class):
    def convert(self, value, param, ctx) -> list[int] | str:
        """Numbers of classes, with ranges expanded, or a name, or several with commas between them."""
        if isinstance(value, (list, int)):
            return [value] if isinstance(value, int) else value
        found = super().convert(value, param, ctx)
        if isinstance(found, int):
            return [found]
        return INT_LIST.convert(value, param, ctx) if re.fullmatch(r"[\d\s,-]+", value) else found


class CommaList(click.ParamType):
    """'a,b' -> ['a', 'b']; 'none' -> []; '' too unless `empty` is off, as an unset variable must not hide a flag."""

    name = "list"

    def __init__(self, empty: bool = True):
        self.empty = empty

    def convert(self, value, param, ctx) -> list[str]:
        """Split at commas; empty items are dropped, but not all of them."""
        if isinstance(value, list):
            return value
        text = str(value).strip()
        if text.lower() == "none" or (text == "" and self.empty):
            return []
        items = [item.strip() for item in text.split(",") if item.strip()]
        if not items:
            self.fail(f"{value!r} names nothing: give names with commas between them, or none", param, ctx)
        return items


BOOL = _Bool()
CLASS = _Class()
CLASSES = _Classes()
FINITE_FLOAT = _FiniteFloat()
INT_LIST = _IntList()
