"""Holds back whoever executes or opens a file, until told to let go: fanotify(7).

Usage: hold.py execute|open FILE. Says `ready`, then `held PID` for each who wants to. Reads lines:
each lets all go that are held. Ends with its input; the kernel lets go whoever is held then.
Only this one file is marked, no mount and no file system.
"""
import ctypes
import os
import select
import struct
import sys

FAN_CLASS_CONTENT, FAN_CLOEXEC, FAN_NONBLOCK = 0x4, 0x1, 0x2
FAN_MARK_ADD = 0x1
ASKED = {"execute": 0x40000, "open": 0x10000}  # FAN_OPEN_EXEC_PERM, FAN_OPEN_PERM
FAN_ALLOW = 0x1
AT_FDCWD = -100
EVENT = struct.Struct("=IBBHQii")

libc = ctypes.CDLL(None, use_errno=True)
libc.fanotify_mark.argtypes = [
    ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p,
]


def check(result, what):
    if result < 0:
        sys.exit(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


flags = FAN_CLASS_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK
group = check(libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC), "fanotify_init")
asked, path = ASKED[sys.argv[1]], os.fsencode(sys.argv[2])
check(libc.fanotify_mark(group, FAN_MARK_ADD, asked, AT_FDCWD, path), "fanotify_mark")
print("ready", flush=True)

held = []
while True:
    ready, _, _ = select.select([group, sys.stdin], [], [])
    if group in ready:
        events = os.read(group, 64 * EVENT.size)
        for at in range(0, len(events), EVENT.size):
            _, _, _, _, _, fd, pid = EVENT.unpack_from(events, at)
            held.append(fd)
            print("held", pid, flush=True)
    if sys.stdin in ready:
        if not sys.stdin.readline():
            break
        for fd in held:
            os.write(group, struct.pack("=iI", fd, FAN_ALLOW))
            os.close(fd)
        held.clear()
