# SPDX-License-Identifier: Apache-2.0
"""Every test here gets a cache folder of its own."""

import pytest


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(folder))
    return folder
