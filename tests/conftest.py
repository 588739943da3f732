"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of goldens and real pictures; tests that need it are skipped without it."""
    folder = Path(os.environ.get("CFDIST_SHARED", PROJECT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no goldens at {folder} (set CFDIST_SHARED to where they are)")
    return folder
