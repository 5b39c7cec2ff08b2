# SPDX-License-Identifier: Apache-2.0
"""Tables and foreign names as text."""

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


def test_printable_text_has_no_control_characters_and_is_short():
    assert text.printable("Zoë's 'cat' \\ 猫.png") == "Zoë's 'cat' \\ 猫.png"
    # A terminal's commands, a line break, a change of the direction of writing, an undecodable byte of a file name.
    assert text.printable("\x1b[2J\a\r\n\x9b\u202e\udcff") == r"\x1b[2J\x07\r\n\x9b\u202e\udcff"
    assert text.printable("a" * 200) == "a" * 200
    assert text.printable("a" * 201) == "a" * 197 + "..."
    assert text.printable("\x1b" * 1000, limit=10) == r"\x1b\x1" + "..."


def test_printable_does_not_spell_out_anything_but_text():
    doubled = []
    for _ in range(100):
        doubled = [doubled, doubled]
    assert text.printable(doubled) == "<list>"
    assert text.printable(None) == "<NoneType>"


def test_messages_to_the_user_are_printable_and_limited():
    assert str(UserError("bad name \x1b[2J:\nits end")) == "bad name \\x1b[2J:\nits end"
    assert len(str(UserError("x" * 10**6))) == 4000
