"""Pictures are decoded into the batch, alike with one thread and several; bombs are refused before anything is allocated."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from ttd.config import UserError
from ttd.data.pictures import PictureDecoder, decode_into


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


def pixels(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def test_several_threads_decode_the_same_batch_as_one():
    contents = [simplejpeg.encode_jpeg(pixels(32, 32, i), quality=90) for i in range(9)]
    expected = np.stack([simplejpeg.decode_jpeg(content) for content in contents])
    files = [(f"picture {i}", content) for i, content in enumerate(contents)]
    for threads in (1, 3):
        out = np.empty_like(expected)
        PictureDecoder(32, threads).batch(files, out)
        np.testing.assert_array_equal(out, expected)


def test_a_png_of_the_right_size_comes_back_exactly():
    out = np.empty((20, 20, 3), np.uint8)
    decode_into(png(pixels(20, 20)), out)
    np.testing.assert_array_equal(out, pixels(20, 20))


@pytest.mark.parametrize("encode", [png, lambda p: simplejpeg.encode_jpeg(p, quality=95)])
@pytest.mark.parametrize("shape", [(40, 80), (81, 40), (10, 17), (41, 40)])
def test_other_sizes_are_scaled_by_the_shorter_side_and_cropped_in_the_middle(encode, shape):
    height, width = shape
    grey = np.full((height, width, 3), 200, np.uint8)
    long = max(shape)
    edge = (long - min(shape)) // 2 - 1
    if edge > 0:  # the ends that the crop leaves out are black
        grey[:edge] = 0 if height == long else grey[:edge]
        if width == long:
            grey[:, :edge] = 0
    out = np.empty((20, 20, 3), np.uint8)
    decode_into(encode(grey), out)
    assert abs(int(np.median(out)) - 200) <= 3
    assert (out[5:15, 5:15] > 190).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_picture_that_cannot_be_decoded_is_named(threads):
    files = [("sample 'a'", png(pixels(16, 16))), ("sample 'b'", b"GIF89a")]
    with pytest.raises(UserError, match="sample 'b': the picture cannot be decoded: not a jpg or png"):
        PictureDecoder(16, threads).batch(files, np.empty((2, 16, 16, 3), np.uint8))


def bomb_png():
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def bomb_jpeg():
    content = bytearray(simplejpeg.encode_jpeg(pixels(16, 16), quality=90))
    start = content.index(b"\xff\xc0")
    content[start + 5 : start + 9] = struct.pack(">HH", 50_000, 50_000)
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bomb_png(), "pixels|decompression bomb"),
        (bomb_jpeg(), "50000 x 50000 pixels are more than 64000000"),
        (b"GIF89a", "not a jpg or png"),
        (b"\xff\xd8\xff nothing", "JPEG|jpeg|header"),
        (png(pixels(16, 16))[:60], "not a jpg or png that can be decoded"),
    ],
)
def test_bombs_and_what_is_no_picture_are_refused_before_anything_is_allocated(content, words):
    out = np.empty((16, 16, 3), np.uint8)
    tracemalloc.start()
    with pytest.raises(ValueError, match=words):
        decode_into(content, out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
