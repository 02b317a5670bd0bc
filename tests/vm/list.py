# The canonical text of a tree, as src/disk/entry.rs has it, with nothing but Python's own calls: list.py ROOT >TEXT
import hashlib
import os
import stat
import sys

KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link", stat.S_IFCHR: "char", stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket",
}


def escaped(name):
    return "".join(chr(c) if 0x21 <= c <= 0x7E and c != 0x5C else f"\\x{c:02x}" for c in name)


def line(path, name):
    facts = os.lstat(path)
    kind = KINDS[stat.S_IFMT(facts.st_mode)]
    fields = [f"path={escaped(name)} type={kind} mode={stat.S_IMODE(facts.st_mode):04o} owner={facts.st_uid}:{facts.st_gid}"]
    if kind == "file":
        with open(path, "rb") as file:
            content = file.read()
        fields.append(f"size={len(content)} sha256={hashlib.sha256(content).hexdigest()}")
    if kind == "link":
        fields.append(f"to={escaped(os.readlink(path))}")
    if kind in ("char", "block"):
        fields.append(f"device={os.major(facts.st_rdev)}:{os.minor(facts.st_rdev)}")
    try:
        names = sorted(os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False))
    except OSError:
        names = []
    for attribute in names:
        value = os.getxattr(path, attribute, follow_symlinks=False)
        fields.append(f"xattr:{escaped(attribute)}={value.hex()}")
    print(" ".join(fields))
    return kind == "dir"


def walk(path, name):
    if line(path, name or b"/"):
        for child in sorted(os.listdir(path)):
            walk(path + b"/" + child, name + b"/" + child)


sys.setrecursionlimit(10000)
print("kiln tree 1")
walk(os.fsencode(sys.argv[1]), b"")
