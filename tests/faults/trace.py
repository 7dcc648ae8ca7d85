"""Stops a process at each of its system calls that touch files below a folder (Linux on x86-64, through ptrace).

A process that is killed at such a stop leaves exactly what SIGKILL would leave there at any later moment before the
call: this walks through all states of the disk that a kill can leave, those inside libraries' own writes too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.driver import Driver, fork

SUPPORTED = sys.platform == "linux" and platform.machine() == "x86_64"

_FIELDS = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs gs ds es f g"
_BY_DESCRIPTOR = {1: "write", 18: "pwrite", 20: "writev", 74: "fsync", 75: "fdatasync", 77: "ftruncate"}
_BY_DESCRIPTOR |= {285: "fallocate", 326: "copy_file_range", 40: "sendfile"}
_BY_PATH = {2: "open", 82: "rename", 83: "mkdir", 84: "rmdir", 86: "link", 87: "unlink", 76: "truncate"}
_BY_FOLDER = {257: "open", 258: "mkdir", 263: "unlink", 264: "rename", 265: "link", 316: "rename"}
_SYMLINK = {88: "symlink", 266: "symlink"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_TRACEME, _CONT, _GETREGS, _SETOPTIONS = 0, 7, 12, 0x4200
_TELL_FILTERED, _DIE_WITH_TRACER = 0x80, 0x100000
_FILTERED = signal.SIGTRAP | 7 << 8
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _IF_EQUAL, _RETURN, _TRACE, _ALLOW = 0x20, 0x15, 0x06, 0x7FF00000, 0x7FFF0000


class _Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in _FIELDS.split()]


@dataclass(frozen=True)
class Call:
    """A system call that is about to happen."""

    name: str
    path: Path


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes, libc.ptrace.restype = [ctypes.c_long] * 4, ctypes.c_long
    if libc.ptrace(request, pid, 0, data) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def _stop_at_calls() -> None:
    """Let the kernel stop this process at the calls that are looked at, and at no other: stops are what costs time."""
    numbers = sorted({*_BY_DESCRIPTOR, *_BY_PATH, *_BY_FOLDER, *_SYMLINK})
    program = [struct.pack("HBBI", _LOAD, 0, 0, 0)]
    program += [struct.pack("HBBI", _IF_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    program += [struct.pack("HBBI", _RETURN, 0, 0, _ALLOW), struct.pack("HBBI", _RETURN, 0, 0, _TRACE)]
    code = ctypes.create_string_buffer(b"".join(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_long] * 5
    for request in ((_NO_NEW_PRIVILEGES, 1, 0, 0, 0), (_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(header), 0, 0)):
        if libc.prctl(*request):
            raise OSError(ctypes.get_errno(), "prctl")


def traced(work: Callable[[], int], output: Path, below: Path) -> Iterator[tuple[Call, Driver]]:
    """Run `work` in a forked process; yield at each call that changes or syncs something below the folder.

    The call happens when the next one is asked for. Kill the process, or exhaust the iterator, to be rid of it.
    """

    def offered() -> int:
        _ptrace(_TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        _stop_at_calls()
        return work()

    driver = fork(offered, output)
    os.waitpid(driver.pid, 0)
    _ptrace(_SETOPTIONS, driver.pid, _TELL_FILTERED | _DIE_WITH_TRACER)
    pending = 0
    while True:
        _ptrace(_CONT, driver.pid, pending)
        _, status = os.waitpid(driver.pid, 0)
        if not os.WIFSTOPPED(status):
            driver.code = os.waitstatus_to_exitcode(status)
            return
        if status >> 8 != _FILTERED:
            pending = os.WSTOPSIG(status)
            continue
        pending = 0
        if (call := _described(driver.pid, below)) is not None:
            yield call, driver
            if driver.code is not None:
                return


def _described(pid: int, below: Path) -> Call | None:
    registers = _Registers()
    _ptrace(_GETREGS, pid, ctypes.addressof(registers))
    number = registers.orig_rax
    if number in _BY_DESCRIPTOR:
        name, path = _BY_DESCRIPTOR[number], _opened(pid, registers.rdx if number == 326 else registers.rdi)
    elif number in _BY_PATH:
        name, path = _BY_PATH[number], _text(pid, registers.rdi)
        if number == 2 and not registers.rsi & _WRITING:
            return None
    elif number in _BY_FOLDER:
        folder = registers.rdi - 2**32 if registers.rdi >= 2**31 else registers.rdi
        name = _BY_FOLDER[number]
        path = os.path.join(_opened(pid, folder) if 0 <= folder < 2**31 else "/", _text(pid, registers.rsi))
        if number == 257 and not registers.rdx & _WRITING:
            return None
    elif number in _SYMLINK:
        name, path = "symlink", _text(pid, registers.rsi if number == 88 else registers.rdx)
    else:
        return None
    whole = Path(os.path.normpath(path))
    return Call(name, whole) if whole == below or below in whole.parents else None


def _opened(pid: int, descriptor: int) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/fd/{descriptor}")
    return ""


def _text(pid: int, address: int) -> str:
    found = b""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        while b"\0" not in found:
            memory.seek(address + len(found))
            found += memory.read(256 - (address + len(found)) % 256)
    return os.fsdecode(found.split(b"\0")[0])
