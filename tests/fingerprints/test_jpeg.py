import io

import numpy as np
import pytest
from PIL import Image

from jaxguard.errors import FingerprintError, OptionError
from jaxguard.fingerprints import jpeg


def photographs(channels, count=3, size=24):
    rng = np.random.default_rng(channels)
    coarse = rng.random((count, 6, 6, channels)).repeat(size // 6, 1).repeat(size // 6, 2)
    return (0.8 * coarse + 0.2 * rng.random((count, size, size, channels))).astype(np.float32)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize("quality", [25, 7])
def test_pixels_are_those_of_pillows_own_file(channels, mode, quality, tmp_path):
    images = photographs(channels)
    found = jpeg.compressed(images, quality=quality)
    assert found.shape == images.shape
    assert found.dtype == np.float32
    for image, got in zip(images, found, strict=True):
        pixels = np.array(
            [[[int(value * 255) for value in pixel] for pixel in row] for row in image.tolist()], np.uint8
        )
        Image.frombytes(mode, (24, 24), pixels.tobytes()).save(tmp_path / "image.jpg", quality=quality)
        expected = np.asarray(Image.open(tmp_path / "image.jpg").convert(mode)).reshape(24, 24, channels)
        np.testing.assert_array_equal(np.rint(got * 255), expected)
    assert np.abs(found - images).mean() > 1e-3


def test_chroma_is_subsampled_as_pillow_does_by_default():
    """Columns of red and blue in turn: with a chroma sample per two pixels, the colours run into each other."""
    image = np.zeros((1, 16, 16, 3), np.float32)
    image[:, :, ::2, 0] = image[:, :, 1::2, 2] = 1
    found = jpeg.compressed(image, quality=95)
    assert np.abs(found - image).max() > 0.3
    buffer = io.BytesIO()
    Image.fromarray(np.uint8(image[0] * 255)).save(buffer, "JPEG", quality=95, subsampling=2)
    np.testing.assert_array_equal(np.rint(found[0] * 255), np.asarray(Image.open(buffer)))


def test_brightness_is_rounded_down_and_bytes_stay_bytes():
    # At quality 95 a constant gray block is kept to within the smallest step.
    gray = np.repeat(np.arange(256, dtype=np.float32)[:, None] / 255, 64, 1).reshape(256, 8, 8, 1)
    expected = jpeg.compressed(gray, quality=95)
    np.testing.assert_array_equal(jpeg.compressed(np.minimum(gray + 0.9 / 255, 1), quality=95), expected)
    assert np.abs(expected - gray).max() < 2 / 255


def test_coarser_is_farther():
    images = photographs(3)
    errors = [np.abs(jpeg.compressed(images, quality=quality) - images).mean() for quality in (95, 25, 7)]
    assert errors == sorted(errors)
    assert errors[0] < errors[2] / 2


@pytest.mark.parametrize(("channels", "quality"), [(3, 0), (1, 96)])
def test_qualities_out_of_range(channels, quality):
    with pytest.raises(OptionError, match=f"for quality of compressed, got {quality}"):
        jpeg.compressed(np.zeros((1, 8, 8, channels)), quality=quality)


@pytest.mark.parametrize("channels", [2, 4])
def test_images_that_are_neither_gray_nor_rgb(channels):
    with pytest.raises(FingerprintError, match=f"1 or 3 channels for JPEG, got {channels}"):
        jpeg.compressed(np.zeros((1, 8, 8, channels)))
