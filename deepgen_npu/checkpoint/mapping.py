"""Tensors that are views of the mapped file: nothing is read until a weight is used, and nothing is copied.

The mapping is private: what is written to such a tensor never reaches the file. The pages come from the file as long
as they are not written to, so the file must stay as it is. One that is replaced by renaming another onto it does; one
that is overwritten changes the model, and where one was cut the process is ended (SIGBUS). Pages that cannot be
fetched end it as well. So only files of local file systems are mapped.
"""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from ..dtypes import stored_dtype
from .safetensors_header import StoredTensor


LOCAL = {"bcachefs", "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "jfs", "nilfs2", "overlay", "reiserfs"}
LOCAL |= {"squashfs", "tmpfs", "xfs", "zfs"}
"""Linux file systems on disks of the machine, or in its memory. Others are on a network (nfs, cifs, 9p), may be
(fuse), or on disks that are pulled out (vfat, exfat)."""

_MOUNTS = Path("/proc/self/mountinfo")
_DESCRIPTORS = Path("/proc/self/fdinfo")


class MappedFiles:
    """One mapping for each file, which lives as long as a tensor of it does."""

    def __init__(self) -> None:
        self._mappings: dict[Path, mmap.mmap | None] = {}

    def knows(self, file: Path) -> bool:
        """Whether it was decided how this file is read."""
        return file in self._mappings

    def add(self, file: Path, descriptor: int) -> None:
        """Map a file if that is safe.

        Args:
            file: Its path, which is not looked at again.
            descriptor: Of the opened file, which may be closed afterwards.
        """
        self._mappings[file] = _mapped(descriptor)

    def view(self, stored: StoredTensor) -> Tensor | None:
        """A tensor in its mapped file; None where it has to be read.

        That is where the file is not mapped or has become too short, and where the tensor is not aligned.
        """
        mapping, dtype = self._mappings[stored.file], stored_dtype(stored.dtype)
        if mapping is None or stored.nbytes == 0 or stored.offset % dtype.itemsize:
            return None
        if mapping.size() < stored.offset + stored.nbytes:  # the file's size now
            return None
        count = stored.nbytes // dtype.itemsize
        return torch.frombuffer(mapping, dtype=dtype, count=count, offset=stored.offset).view(stored.shape)


def _mapped(descriptor: int) -> mmap.mmap | None:
    if not is_local(descriptor):
        return None
    try:
        # All of it. ACCESS_COPY: what is written stays in this process.
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError):  # more than the system lends, or an empty file
        return None


def is_local(descriptor: int) -> bool:
    """Whether an opened file is on a file system of `LOCAL`; False where that is not known.

    Linux says for each descriptor which mount it was opened on. The device number of a file does not always say it:
    btrfs and overlay give numbers that no mount has.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        facts = dict(line.split(":", 1) for line in _lines(_DESCRIPTORS / str(descriptor)))
        mounts = [line.partition(" - ") for line in _lines(_MOUNTS)]
        # 27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
        types = {left.split()[0]: right.split()[0] for left, _, right in mounts}
        return types[facts["mnt_id"].strip()] in LOCAL
    except (OSError, ValueError, LookupError):
        return False


def _lines(path: Path) -> list[str]:
    return os.fsdecode(path.read_bytes()).splitlines()
