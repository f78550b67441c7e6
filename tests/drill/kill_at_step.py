"""Kills a process at its Nth step: ptrace(2). A step is the beginning or the end of a system call
of its main thread, or of a process that this thread has made and that is not yet its program.

Usage: kill_at_step.py PID N. Says `ready`, and `killed PID`: who had come to that step. Whoever is
traced goes on when this ends.
"""
import ctypes
import os
import signal
import sys

SEIZE, INTERRUPT, SYSCALL, DETACH = 0x4206, 0x4207, 24, 17
TRACESYSGOOD, TRACEFORK, TRACEVFORK, TRACEEXEC = 0x1, 0x2, 0x4, 0x10
EVENT_FORK, EVENT_VFORK, EVENT_EXEC, EVENT_STOP = 1, 2, 4, 128
WALL = 0x40000000

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

server, step = int(sys.argv[1]), int(sys.argv[2])


def ptrace(request, pid, data=0):
    return libc.ptrace(request, pid, None, data)


options = TRACESYSGOOD | TRACEFORK | TRACEVFORK | TRACEEXEC
if ptrace(SEIZE, server, options) != 0:
    sys.exit(f"ptrace: {os.strerror(ctypes.get_errno())}")
ptrace(INTERRUPT, server)
os.waitpid(server, WALL)
print("ready", flush=True)
ptrace(SYSCALL, server)

steps = 0
while True:
    pid, status = os.waitpid(-1, WALL)
    if not os.WIFSTOPPED(status):
        if pid == server:
            sys.exit("the server ended by itself")
        continue
    stopped_by, event = os.WSTOPSIG(status), status >> 16
    if event == EVENT_EXEC:
        ptrace(DETACH, pid)
    elif event in (EVENT_FORK, EVENT_VFORK, EVENT_STOP):
        ptrace(SYSCALL, pid)
    elif stopped_by == signal.SIGTRAP | 0x80:
        steps += 1
        if steps == step:
            os.kill(server, signal.SIGKILL)
            print("killed", pid, flush=True)
            sys.exit(0)
        ptrace(SYSCALL, pid)
    else:
        ptrace(SYSCALL, pid, stopped_by)
