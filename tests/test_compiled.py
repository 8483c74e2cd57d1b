"""The compiled pointwise pass is an extra: where it cannot be had, everything works without it."""

import os
import stat

import pytest
import torch

from convlstm_wx.models import compiled
from convlstm_wx.models.convlstm import ConvLSTM


@pytest.fixture
def _fresh(tmp_path, monkeypatch):
    """An empty cache, and nothing loaded before or after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(compiled.NO_COMPILER, raising=False)
    compiled._load.cache_clear()
    yield
    compiled._load.cache_clear()


def a_tool(folder, body: str):
    folder.mkdir()
    tool = folder / "cc"
    tool.write_text(f"#!/bin/sh\n{body}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return str(folder)


def works() -> bool:
    h, _ = ConvLSTM(2, 3)(torch.randn(1, 2, 2, 4, 4))
    h.sum().backward()
    return bool(torch.isfinite(h).all())


@pytest.mark.usefixtures("_fresh")
@pytest.mark.skipif(not any(os.access(f"{p}/cc", os.X_OK) for p in os.environ["PATH"].split(":")), reason="no compiler")
def test_it_is_built_once_and_found_again(tmp_path):
    assert compiled.library(torch.float32) is not None
    (built,) = (tmp_path / "cache" / "convlstm_wx").iterdir()
    before = built.stat().st_mtime_ns
    compiled._load.cache_clear()
    assert compiled.library(torch.float32) is not None
    assert built.stat().st_mtime_ns == before


@pytest.mark.usefixtures("_fresh")
def test_no_compiler_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiled.library(torch.float32) is None
    assert works()


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("body", ["exit 1", 'case "$1" in --version) echo fake;; *) exit 1;; esac', "kill -9 $$"])
def test_a_broken_compiler_is_no_error(tmp_path, monkeypatch, body):
    monkeypatch.setenv("PATH", a_tool(tmp_path / "bin", body))
    assert compiled.library(torch.float32) is None
    assert works()


@pytest.mark.usefixtures("_fresh")
def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compiled.library(torch.float32) is None
    assert works()


def test_a_variable_forces_it_off(monkeypatch):
    monkeypatch.setenv(compiled.NO_COMPILER, "1")
    assert compiled.library(torch.float32) is None


def test_other_types_have_none():
    assert compiled.library(torch.float64) is None
    assert compiled.library(torch.float16) is None
