"""What a FIF file must be like before it is read: MNE reads a damaged one as a shorter recording, without a word.

A FIF file is a list of tags (kind, type, size, next: four big-endian integers, then the content) in nested blocks. It states
neither its length nor that of its data, so that what is missing shows only in the list: it must lead from tag to tag to the
very end of the file, its blocks must close, and the buffers of the samples must be alike.

MNE-Python, ``mne/_fiff/constants.py``: the numbers of kinds and blocks.
"""

from __future__ import annotations

import struct
from pathlib import Path

from ttd.config import UserError

FILE_ID, BLOCK_START, BLOCK_END, NOP = 100, 104, 105, 108
N_CHANNELS, CHANNEL, FIRST_SAMPLE, DATA_BUFFER, DATA_SKIP = 200, 203, 208, 300, 301
RAW_BLOCKS = (102, 103, 119)
"""Raw data, continuous data, data of an active-shielding system."""
ITEM_SIZES = {2: 2, 3: 4, 4: 4, 5: 8, 16: 2, 20: 8, 21: 16}
"""Bytes of the types that buffers of samples have."""


def check(path: Path) -> None:
    """Refuse a file whose tags do not lead from its beginning to its end.

    Raises:
        UserError: naming the file and the byte where it breaks off.
    """
    size = path.stat().st_size
    blocks: list[int] = []
    buffers: list[tuple[int, int]] = []  # type and bytes
    announced, channels, position, ended = None, 0, 0, False
    with path.open("rb") as file:
        while position < size:
            head = file.read(16)
            if len(head) < 16 or ended:
                raise _broken(path, position, "something follows the last tag")
            kind, form, n_bytes, following = struct.unpack(">4i", head)
            stop = position + 16 + n_bytes
            if position == 0 and (kind, n_bytes) != (FILE_ID, 20):
                raise _broken(path, 0, "it does not begin as a FIF file does")
            if n_bytes < 0 or stop > size or following not in (0, -1, stop):
                raise _broken(path, position, "the next tag does not follow")
            if kind in (BLOCK_START, BLOCK_END, N_CHANNELS) and n_bytes != 4:
                raise _broken(path, position, f"a tag of kind {kind} has {n_bytes} bytes, not 4")
            value = struct.unpack(">i", file.read(4))[0] if kind in (BLOCK_START, BLOCK_END, N_CHANNELS) else 0
            in_data = bool(blocks) and blocks[-1] in RAW_BLOCKS
            if kind == BLOCK_START:
                blocks.append(value)
            elif kind == BLOCK_END:
                if not blocks or blocks.pop() != value:
                    raise _broken(path, position, f"block {value} ends that had not begun")
            elif kind == N_CHANNELS:
                announced = value
            elif kind == CHANNEL:
                channels += 1
            elif in_data and kind == DATA_BUFFER:
                buffers.append((form, n_bytes))
            elif in_data and kind not in (FIRST_SAMPLE, DATA_SKIP, NOP):
                raise _broken(path, position, f"a tag of kind {kind} lies between the samples")
            ended, position = following == -1, stop
            file.seek(stop)
    if blocks or not ended:
        raise _broken(path, size, "the file is cut off")
    if announced != channels or not buffers:
        raise UserError(
            f"{path}: a damaged FIF recording: it announces {announced} channels, describes {channels} and has "
            f"{len(buffers)} buffers of samples; export or download it again"
        )
    frame = channels * ITEM_SIZES.get(buffers[0][0], 0)
    alike = len({form for form, _ in buffers}) == 1 and len({n for _, n in buffers[:-1]}) <= 1
    if not frame or not alike or any(n % frame for _, n in buffers) or buffers[-1][1] > buffers[0][1]:
        raise UserError(f"{path}: a damaged FIF recording: its buffers of samples differ; export or download it again")


def _broken(path: Path, position: int, why: str) -> UserError:
    return UserError(f"{path}: a damaged FIF recording: at byte {position}, {why}; export or download it again")
