"""Becomes a server: the last step before exec, run as `python -I -S launch.py PARENT SIGNAL UID WATCHED COMMAND...`.

Owns what has to happen inside the child: the server ends with its parent, and PostgreSQL does not run as root. It is a
program of its own and not a `preexec_fn`, because Python code between fork and exec can deadlock in a threaded parent.
The pid stays the same throughout. Only the standard library may be imported here; what goes wrong goes to the log.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time

PR_SET_PDEATHSIG, PR_SET_SECUREBITS, PR_CAP_AMBIENT = 1, 28, 47  # <linux/prctl.h>
PR_CAP_AMBIENT_RAISE = 2
SECBIT_NO_SETUID_FIXUP = 1 << 2  # <linux/securebits.h>
CAP_DAC_OVERRIDE = 1  # <linux/capability.h>
CAPABILITY_VERSION_3 = 0x20080522
WATCH_GRACE_S = 10.0


def main(parent: int, end_signal: int, uid: int, watched: bool, command: list[str]) -> None:
    """Prepare this process and replace it by `command`; does not return."""
    if watched:
        watch(os.getpid(), end_signal)
    if uid >= 0:
        become(uid)
        require_reachable(command[0], uid)
        require_reachable("./.", uid)
    if not watched:
        die_with(parent, end_signal)  # after become(): a change of uid clears it
    os.execv(command[0], command)  # noqa: S606


def die_with(parent: int, end_signal: int) -> None:
    """Have the kernel send `end_signal` when the parent thread that spawned us ends: prctl(2), PR_SET_PDEATHSIG."""
    prctl(PR_SET_PDEATHSIG, end_signal)
    if os.getppid() != parent:  # it ended before the line above
        sys.exit("launch: the parent is gone")


def watch(pid: int, end_signal: int) -> None:
    """Leave a process behind that ends `pid` when standard input does; one byte on it tells the process to go quietly.

    It is forked twice, so that the server does not find a child it knows nothing of, and before the uid changes, so
    that it may signal the server.
    """
    if child := os.fork():
        os.waitpid(child, 0)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        return
    if os.fork():
        os._exit(0)
    os.setsid()
    os.closerange(3, 65536)  # the lock on the data directory belongs to the server alone
    if not os.read(0, 1):
        with contextlib.suppress(ProcessLookupError):
            end(pid, end_signal)
    os._exit(0)


def end(pid: int, end_signal: int) -> None:
    """Send `end_signal`, and SIGKILL to what is there after WATCH_GRACE_S; ProcessLookupError if it has gone."""
    os.kill(pid, end_signal)
    if end_signal == signal.SIGKILL:
        return
    os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + WATCH_GRACE_S
    while time.monotonic() < deadline:
        os.kill(pid, 0)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)


def become(uid: int) -> None:
    """Give up root for `uid`, keeping on Linux the right to enter directories such as a /root of mode 0700.

    That right is the ambient capability CAP_DAC_OVERRIDE (capabilities(7)), and no other is kept. Without
    SECBIT_NO_SETUID_FIXUP access(2), with which PostgreSQL looks for its own files, would not honour it. Where the
    kernel refuses, the server goes on without it, and `require_reachable` decides.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    if sys.platform == "linux":
        keep_only(CAP_DAC_OVERRIDE)


def keep_only(capability: int) -> None:
    """Drop every capability except this one, which exec will pass on; drop this one too if the kernel refuses it."""
    for mask in (1 << capability, 0):
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
        data = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)  # effective, permitted, inheritable; then bits 32-63
        with contextlib.suppress(OSError):
            checked(libc().capset(header, data))
            if mask:
                prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)
            return


def require_reachable(path: str, uid: int) -> None:
    """Exit with a sentence to act on if `uid` cannot get at `path`."""
    try:
        os.stat(path)  # noqa: PTH116
    except OSError as error:
        sys.exit(
            f"launch: as root, PostgreSQL runs as uid {uid}, and this uid cannot reach {os.path.abspath(path)}"  # noqa: PTH100
            f" ({error.strerror}). Run as a user other than root, grant CAP_DAC_OVERRIDE and CAP_SETPCAP, or keep the"
            " project where every user may enter."
        )


def prctl(option: int, *values: int) -> None:
    """prctl(2); OSError if the kernel refuses."""
    checked(libc().prctl(option, *(ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4])))


def libc() -> ctypes.CDLL:
    """The C library this process already runs on."""
    return ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> None:
    """Raise OSError for a system call that returned -1."""
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1", sys.argv[5:])
