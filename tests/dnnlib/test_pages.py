# SPDX-License-Identifier: Apache-2.0
"""HTML pages: complete, escaped, and without anything that a browser would have to fetch."""

import base64
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from dnnlib import pages


class Balance(html.parser.HTMLParser):
    """Raises AssertionError where elements are not closed in order."""

    EMPTY = {"meta", "link", "img"}

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


PICTURE = np.random.RandomState(0).randint(256, size=(5, 7, 3), dtype=np.uint8)


def test_a_page_is_well_formed_escaped_and_self_contained():
    parts = [
        pages.table([["a", "b"], ["<x>", "1 & 2"]]),
        pages.side_by_side([pages.picture(PICTURE, 'the "alt"', "<b>c</b>")], fill=True),
        pages.scrolled(pages.picture(PICTURE, "a chart", kind="chart")),
        pages.details("more <", "{'a': '<b>'}"),
        pages.paragraph("note & <note>"),
    ]
    text = pages.page("One & <two>", pages.section("Part <1>", *parts))
    Balance(text)
    for shown in ("One &amp; &lt;two&gt;", "Part &lt;1&gt;", "&lt;x&gt;", "1 &amp; 2", "the &quot;alt&quot;"):
        assert shown in text
    assert "<x>" not in text and "<note>" not in text
    assert not re.search(r'(?:src|href)="(?!data:)|url\(|@import|<script', text)
    assert "http-equiv" not in text
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    with Image.open(io.BytesIO(base64.b64decode(found[0]))) as image:
        np.testing.assert_array_equal(np.asarray(image), PICTURE)


def test_a_page_can_open_itself_again():
    assert '<meta http-equiv="refresh" content="60">' in pages.page("a", "", refresh=60)


@pytest.mark.parametrize("rows", [[["a", "b"]], [["a"], ["1"]]])
def test_tables_may_be_small(rows):
    Balance(pages.table(rows))
