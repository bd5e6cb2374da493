"""Tests run as root in many containers, and root may read and write everything."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

VERSION = 0x20080522
MAY_IGNORE_MODES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


class _Head(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


@contextmanager
def modes_respected() -> Iterator[None]:
    """In this thread, and those that it starts, the permissions of files hold for root, too."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root may read and write everything")
    libc = ctypes.CDLL(None, use_errno=True)
    head, sets = _Head(VERSION, 0), (_Sets * 2)()
    if libc.capget(ctypes.byref(head), sets):
        pytest.skip("the privileges of root cannot be laid down")
    before = sets[0].effective
    sets[0].effective = before & ~MAY_IGNORE_MODES
    if libc.capset(ctypes.byref(head), sets):
        pytest.skip("the privileges of root cannot be laid down")
    try:
        yield
    finally:
        sets[0].effective = before
        libc.capset(ctypes.byref(head), sets)
