# SPDX-License-Identifier: Apache-2.0
"""Labels that NumPy or the networks could not hold; test_dataset covers the others."""

import json

import numpy as np
import pytest

from tests.hostile import memory_below
from training.data import class_names, labels
from training.data.image_files import DatasetError, FolderFiles


def load(folder, content: bytes, num_images: int = 1) -> np.ndarray | None:
    (folder / "dataset.json").write_bytes(content)
    return labels.load_labels(FolderFiles(str(folder)), [f"{i}.png" for i in range(num_images)])[0]


def of(*values) -> bytes:
    return json.dumps({"labels": [[f"{i}.png", value] for i, value in enumerate(values)]}).encode()


@pytest.mark.parametrize(
    "values",
    [
        [1e39], [[1e39]], [[0.5], [-1e39]], [[10**400]], [10**400], [0.5, 10**400], [float("nan")], [[float("inf")]],
        [-1], [2**63], ["x"], [True], [[True]], [[["x"]]], [[1], 1], [[1], [1, 2]], [{}], [[None]],
    ],
)  # fmt: skip
def test_labels_that_are_no_finite_float32_are_refused(tmp_path, values):
    with pytest.raises(DatasetError, match="class numbers"):
        load(tmp_path, of(*values), len(values))


def test_the_largest_float32_is_a_label(tmp_path):
    assert load(tmp_path, of([3.4e38], [-3.4e38]), 2).tolist() == [[np.float32(3.4e38)], [np.float32(-3.4e38)]]
    assert load(tmp_path, of(2.0, 0), 2).tolist() == [2, 0]


@pytest.mark.parametrize("value", [300_000_000, 2**31 - 1, 65536, [0] * 65537])
def test_far_more_classes_than_images_are_refused(tmp_path, value):
    with pytest.raises(DatasetError, match="classes or dimensions"):
        load(tmp_path, of(value))


def test_many_classes_are_possible(tmp_path):
    assert load(tmp_path, of(65535)).tolist() == [65535]
    assert load(tmp_path, of([0] * 65536)).shape == (1, 65536)
    assert load(tmp_path, of(*range(70_000)), 70_000).max() == 69_999


BAD = {
    "deep": (b"[" * 200_000, "too deeply"),
    "5000 digits": (b'{"labels": [["0.png", ' + b"9" * 5000 + b"]]}", "not valid JSON|class numbers"),
    "lists": (b"[" + b"[]," * 5_000_000 + b"[]]", "too many lists"),
    "length": (b" " * (40 << 20), "larger than 32 MiB"),
    "name": (b'{"labels": [["\\u001b[2J", 0]]}', "no label for image '0.png'"),
}


@pytest.mark.parametrize("content, word", BAD.values(), ids=BAD)
def test_label_files_beyond_belief_are_refused(tmp_path, content, word):
    with memory_below(100), pytest.raises(DatasetError, match=word):
        load(tmp_path, content)


def test_a_long_text_among_many_labels_takes_no_memory(tmp_path):
    with memory_below(100), pytest.raises(DatasetError, match="class numbers"):
        load(tmp_path, of("x" * 1_000_000, *range(1000)), 1001)


def test_the_labels_of_a_large_dataset_may_lie_beside_a_few_images(tmp_path):
    content = of(*(i % 1000 for i in range(200_000)))
    assert load(tmp_path, content, 3).tolist() == [0, 1, 2]


def test_names_of_classes_are_listed_within_bounds():
    names = ["\x1b[31mred\nline", "x" * 255, *map(str, range(1000))]
    lines = class_names.listing(names, range(1002))
    assert lines[0] == "0 \\x1b[31mred\\nline (0)" and lines[1].endswith("x... (1)") and len(lines[1]) < 70
    assert len(lines) == 21 and lines[-1] == "... and 982 more"


def test_a_class_is_found_by_its_exact_name_or_the_only_one_in_another_case():
    names = ["Cat", "cat", "Dog"]
    assert [class_names.find(names, name) for name in ("cat", "Cat", "CAT", "dog", "bird")] == [1, 0, None, 2, None]
