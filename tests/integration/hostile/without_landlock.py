"""`python without_landlock.py COMMAND...`: runs it on a kernel that seems to have no Landlock."""

from __future__ import annotations

import errno
import os
import struct
import sys

from agent_executor.sandbox import confine, landlock, seccomp

calls = (landlock._CREATE_RULESET, landlock._ADD_RULE, landlock._RESTRICT_SELF)
steps = [step for call in calls for step in ((seccomp._EQUAL, 0, 1, call), seccomp._fail(errno.ENOSYS))]
rules = [(seccomp._LOAD, 0, 0, seccomp._NR), *steps, seccomp._return(seccomp._ALLOW)]
confine._prctl(confine._NO_NEW_PRIVS, 1)
confine._filter(b"".join(struct.pack("=HBBI", *rule) for rule in rules))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
