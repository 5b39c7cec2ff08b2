# SPDX-License-Identifier: Apache-2.0
"""Tables as text."""

from dnnlib import text
from dnnlib.errors import UserError

ROWS = [["name", "value", ""], ["a", "1", "first"], ["long name", "10000000", ""]]


def test_columns_are_aligned_and_lines_end_without_spaces():
    assert text.aligned(ROWS).splitlines() == [
        "name       value",
        "a          1         first",
        "long name  10000000",
    ]


def test_rules_are_as_wide_as_the_columns():
    lines = text.aligned(ROWS, rules=(1, 2)).splitlines()
    assert [index for index, line in enumerate(lines) if set(line) <= {"-", " "}] == [1, 3]
    assert lines[1] == lines[3] == "---------  --------  -----"


def test_a_markdown_table_has_a_header_and_no_other_bars_than_its_own():
    assert text.markdown([["kernel", "bytes"], ["a|b", "1"]]).splitlines() == [
        "| kernel | bytes |",
        "| --- | --- |",
        "| a/b | 1 |",
    ]


def test_numeric_columns_of_a_markdown_table_are_right_aligned():
    assert text.markdown([["kernel", "x", "y"]], numeric=2).splitlines()[1] == "| --- | ---: | ---: |"


def test_what_a_file_says_cannot_reach_the_terminal():
    assert text.printable("a\x1b]0;x\x07b\nc\u202e\ud800") == r"a\x1b]0;x\x07b\nc\u202e\ud800"
    assert text.printable("Ünïcode 猫") == "Ünïcode 猫"


def test_long_text_is_cut():
    assert text.printable("x" * 200) == "x" * 200
    assert text.printable("x" * 201) == "x" * 197 + "..."
    assert text.printable("\x1b" * 10**7, 10) == r"\x1b\x1..."


def test_of_other_objects_only_the_type_is_said():
    class Hostile:
        def __str__(self):
            raise AssertionError

    assert [text.printable(value) for value in (Hostile(), [1], None)] == ["<Hostile>", "<list>", "<NoneType>"]


def test_messages_to_the_user_are_printable_and_limited():
    assert str(UserError("bad name \x1b[2J:\nits end")) == "bad name \\x1b[2J:\nits end"
    assert len(str(UserError("x" * 10**6))) == 4000
