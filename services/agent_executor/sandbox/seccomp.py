"""The filter of system calls that a child puts on itself, as a classic BPF program.

Owns which calls are refused and why. Landlock cannot see them: it knows files and TCP ports, no processes, no signals,
no `chmod` and no limits of other processes of the same user.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

from .syscalls import HIGHEST, Architecture, number

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NR, _ARCH, _ARGUMENTS = 0, 4, 16
_X32 = 0x40000000

_A_THREAD = (
    0x10F00  # CLONE_THREAD, SIGHAND, VM, and FILES and FS: its descriptors are the process's, and so is their limit
)
_NAMESPACES = 0x7E020000
_CLOSE_ON_EXEC = 4  # beside it there is CLOSE_RANGE_UNSHARE: a table of descriptors of the thread's own
_INET, _INET6, _UNIX, _STREAM, _TYPE_MASK = 2, 10, 1, 1, 0xF

Instruction = tuple[int, int, int, int]

SOCKETS = "connect bind listen accept accept4 sendmsg sendmmsg"
REFUSED = " ".join(
    (
        "fork vfork execve execveat unshare setns setsid setpgid",  # the child is all there is to kill
        "ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp",
        "pidfd_open pidfd_getfd pidfd_send_signal tkill rt_sigqueueinfo rt_tgsigqueueinfo",
        "setpriority ioprio_set migrate_pages move_pages",  # reach every process of the user
        "capset seccomp personality setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups",
        "mount umount2 pivot_root chroot move_mount open_tree open_tree_attr fsopen fsconfig fsmount fspick",
        "mount_setattr statmount listmount swapon swapoff quotactl quotactl_fd acct fanotify_init fanotify_mark",
        "name_to_handle_at open_by_handle_at",
        "inotify_init inotify_init1 inotify_add_watch",  # names of files that Landlock hides; few of them per user
        "chown lchown fchown fchownat setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr",
        "removexattrat file_setattr",
        "memfd_create memfd_secret shmget shmat shmctl shmdt semget semop semctl semtimedop",  # memory beside the limit
        "msgget msgsnd msgrcv msgctl mq_open mq_unlink io_setup io_submit",
        "bpf perf_event_open keyctl add_key request_key userfaultfd kexec_load kexec_file_load",
        "init_module finit_module delete_module reboot syslog iopl ioperm lookup_dcookie nfsservctl vhangup",
        "sethostname setdomainname settimeofday clock_settime clock_adjtime adjtimex uselib ustat sysfs modify_ldt",
        "lsm_set_self_attr",
    )
)
ABSENT = "clone3 io_uring_setup io_uring_enter io_uring_register"  # callers know another way; clone3's flags are hidden
WITHOUT_EFFECT = "chmod fchmod fchmodat fchmodat2 utime utimes futimesat utimensat"  # shutil.copy and zipfile want them
OWN_PROCESS = "kill prlimit64 sched_setaffinity sched_setscheduler sched_setparam sched_setattr tgkill"
PRCTL = (2, 3, 15, 16, 21, 23, 27, 30, 39, 0x53564D41)  # read-only ones, the thread's name, names of memory areas
FCNTL = (8, 10, 15, 1024)  # F_SETOWN, F_SETSIG, F_SETOWN_EX: signals to others; F_SETLEASE
IOCTL = (0x8901, 0x8902, 0x5412, 0x541C, 0x540E, 0x40086602, 0x401C5820)  # the same; terminals; flags of files


def program(architecture: Architecture, *, network: bool, may_truncate: bool) -> bytes:
    """Instructions for `PR_SET_SECCOMP`, for the process that calls this.

    `may_truncate`: Landlock rules `truncate` (ABI 3), so that the filter need not refuse it.
    """
    found = [*_rules(architecture, network=network, may_truncate=may_truncate)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in found)


def _rules(architecture: Architecture, *, network: bool, may_truncate: bool) -> Iterator[Instruction]:
    yield (_LOAD, 0, 0, _ARCH)
    yield (_EQUAL, 1, 0, architecture.audit)
    yield _return(_KILL)
    yield (_LOAD, 0, 0, _NR)
    yield from ((_AT_LEAST, 0, 1, _X32), _return(_KILL))
    yield from ((_AT_LEAST, 0, 1, HIGHEST + 1), _fail(errno.ENOSYS))
    answers = dict.fromkeys(REFUSED.split(), errno.EPERM)
    answers |= dict.fromkeys(ABSENT.split(), errno.ENOSYS) | dict.fromkeys(WITHOUT_EFFECT.split(), 0)
    answers |= {} if network else dict.fromkeys(SOCKETS.split(), errno.EPERM)
    answers |= {} if may_truncate else {"truncate": errno.EPERM}
    for name, answer in answers.items():
        if (call := number(name, architecture)) is not None:
            yield from ((_EQUAL, 0, 1, call), _fail(answer))
    for name, body in _conditions(network).items():
        call = number(name, architecture)
        assert call is not None, name
        yield from ((_EQUAL, 0, len(body), call), *body)
    yield _return(_ALLOW)


def _conditions(network: bool) -> dict[str, list[Instruction]]:
    """Calls that depend on an argument: what follows once the number has matched."""
    process = os.getpid()
    found = {name: _only(0, (process,) if "kill" in name else (0, process)) for name in OWN_PROCESS.split()}
    found["clone"] = _only(0, (_A_THREAD,), mask=_A_THREAD | _NAMESPACES)
    found["close_range"] = _only(2, (0, _CLOSE_ON_EXEC))
    found["socket"] = _only(0, (_INET, _INET6) if network else ())
    # asyncio wakes itself by a pair; one of datagrams could send anywhere
    is_unix = [*_argument(0, None), (_EQUAL, 1, 0, _UNIX), _fail(errno.EPERM)]
    found["socketpair"] = [*is_unix, *_only(1, (_STREAM,), mask=_TYPE_MASK)]
    found["prctl"] = _only(0, PRCTL)
    found["fcntl"] = _never(1, FCNTL)
    found["ioctl"] = _never(1, IOCTL)
    return found


def _only(argument: int, values: tuple[int, ...], mask: int | None = None) -> list[Instruction]:
    """Allow where the argument (its low 32 bits, which is all the kernel looks at here) is one of `values`."""
    allowed = [step for value in values for step in ((_EQUAL, 0, 1, value), _return(_ALLOW))]
    return [*_argument(argument, mask), *allowed, _fail(errno.EPERM)]


def _never(argument: int, values: tuple[int, ...]) -> list[Instruction]:
    refused = [step for value in values for step in ((_EQUAL, 0, 1, value), _fail(errno.EPERM))]
    return [*_argument(argument, None), *refused, _return(_ALLOW)]


def _argument(argument: int, mask: int | None) -> list[Instruction]:
    load = (_LOAD, 0, 0, _ARGUMENTS + 8 * argument)  # little-endian: the low half comes first
    return [load] if mask is None else [load, (_AND, 0, 0, mask)]


def _return(action: int) -> Instruction:
    return (_RETURN, 0, 0, action)


def _fail(number_: int) -> Instruction:
    return _return(_ERRNO | number_)
