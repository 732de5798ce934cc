"""Whatever holds a picture, it comes out as upright RGB with the right pixels, or is refused by its cause."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from seeing.data.images import MAX_PIXELS, BadImage, load_image

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
CORNERS = np.array([[RED, GREEN, WHITE], [BLUE, BLACK, (40, 80, 120)]], dtype=np.uint8)


def corners() -> Image.Image:
    """Six different pixels, 3 wide and 2 high: any turn or flip shows."""
    return Image.fromarray(CORNERS)


def pixels(image) -> np.ndarray:
    """What `load_image` makes of it, once it is seen to be RGB."""
    loaded = load_image(image)
    assert loaded.mode == "RGB"
    return np.asarray(loaded)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# -- modes -------------------------------------------------------------------------------------------


def test_rgb_stays_as_it_is():
    np.testing.assert_array_equal(pixels(corners()), CORNERS)


def test_the_original_is_not_handed_out():
    """A picture that a caller paints on later must not change a prompt made before."""
    original = corners()
    load_image(original).putpixel((0, 0), BLACK)
    assert original.getpixel((0, 0)) == RED


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "WEBP", "GIF"])
def test_lossless_files_give_their_pixels(tmp_path, kind):
    path = tmp_path / "picture"
    path.write_bytes(encoded(corners(), kind, **({"lossless": True} if kind == "WEBP" else {})))
    np.testing.assert_array_equal(pixels(path), CORNERS)
    np.testing.assert_array_equal(pixels(str(path)), CORNERS)


def test_grayscale_is_spread_over_the_channels():
    values = np.array([[0, 100, 255]], dtype=np.uint8)
    np.testing.assert_array_equal(pixels(Image.fromarray(values)), values[..., None].repeat(3, -1))


def test_one_bit_becomes_black_and_white():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(pixels(image), [[BLACK, WHITE]])


def test_a_palette_is_looked_up():
    np.testing.assert_array_equal(pixels(corners().convert("P", palette=Image.Palette.ADAPTIVE)), CORNERS)


def test_a_transparent_entry_of_a_palette_is_laid_on_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=0)
    np.testing.assert_array_equal(pixels(tmp_path / "p.png"), [[WHITE, GREEN]])


def test_a_transparent_colour_of_an_rgb_file_is_laid_on_white(tmp_path):
    corners().save(tmp_path / "keyed.png", transparency=BLACK)
    expected = CORNERS.copy()
    expected[1, 1] = WHITE
    np.testing.assert_array_equal(pixels(tmp_path / "keyed.png"), expected)


@pytest.mark.parametrize(("alpha", "expected"), [(255, (40, 80, 120)), (0, WHITE), (51, (212, 220, 228))])
def test_transparency_is_laid_on_white_by_its_share(alpha, expected):
    found = pixels(Image.new("RGBA", (1, 1), (40, 80, 120, alpha)))[0, 0]
    np.testing.assert_allclose(found.astype(int), expected, atol=1)


def test_gray_with_alpha():
    image = Image.new("LA", (2, 1), (30, 255))
    image.putpixel((1, 0), (30, 0))
    np.testing.assert_array_equal(pixels(image), [[(30, 30, 30), WHITE]])


def test_cmyk_comes_out_as_the_colours_it_prints():
    image = Image.new("CMYK", (2, 1), (0, 255, 255, 0))
    image.putpixel((1, 0), (255, 255, 0, 0))
    np.testing.assert_array_equal(pixels(image), [[RED, BLUE]])


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_pictures_are_refused_not_clipped(mode):
    with pytest.raises(BadImage, match=f"mode '{mode}'.*8 bits.*convert"):
        load_image(Image.new(mode, (4, 4)))


def test_a_16_bit_file_is_refused_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(BadImage, match="8 bits"):
        load_image(tmp_path / "deep.png")


# -- the right way up --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, CORNERS),
        (2, CORNERS[:, ::-1]),
        (3, CORNERS[::-1, ::-1]),
        (4, CORNERS[::-1]),
        (5, CORNERS.transpose(1, 0, 2)),
        (6, np.rot90(CORNERS, -1)),
        (7, CORNERS[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(CORNERS)),
    ],
)
def test_a_photo_stored_on_its_side_stands_upright(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    corners().save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(pixels(tmp_path / "photo.png"), upright)
    once = load_image(tmp_path / "photo.png")
    np.testing.assert_array_equal(pixels(once), upright, "turned twice when loaded twice")


# -- sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (3, 3), (1, 3)])
def test_odd_sizes_are_kept(size):
    assert load_image(Image.new("RGB", size, RED)).size == size


def test_a_picture_of_no_pixels_is_refused():
    with pytest.raises(BadImage, match="0×5"):
        load_image(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_small_file_that_claims_a_gigantic_size_is_refused_before_decoding(tmp_path, side):
    """Above Pillow's own limit and below it."""
    data = bytearray(encoded(Image.new("1", (8, 8)), "BMP"))
    data[18:26] = side.to_bytes(4, "little") * 2
    (tmp_path / "bomb.bmp").write_bytes(data)
    assert side**2 > MAX_PIXELS
    with pytest.raises(BadImage, match=rf"{side}×{side}|{side**2} pixels"):
        load_image(tmp_path / "bomb.bmp")


# -- arrays ------------------------------------------------------------------------------------------


def test_arrays_of_bytes_and_of_shares_are_the_same_picture():
    np.testing.assert_array_equal(pixels(CORNERS), CORNERS)
    for kind in (np.float16, np.float32, np.float64):
        np.testing.assert_allclose(pixels((CORNERS / 255).astype(kind)).astype(int), CORNERS, atol=1)
    np.testing.assert_array_equal(pixels(CORNERS / 255), CORNERS)


def test_a_flat_array_is_gray_and_a_fourth_channel_is_alpha():
    np.testing.assert_array_equal(pixels(CORNERS[..., 0]), CORNERS[..., :1].repeat(3, -1))
    clear = np.dstack([CORNERS, np.zeros((2, 3), dtype=np.uint8)])
    np.testing.assert_array_equal(pixels(clear), np.full((2, 3, 3), 255))


@pytest.mark.parametrize("shape", [(3,), (2, 2, 1), (2, 2, 2), (3, 8, 8), (1, 2, 2, 3), (0, 4), (4, 0, 3)])
def test_arrays_of_another_shape_are_refused_with_it(shape):
    with pytest.raises(BadImage) as error:
        load_image(np.zeros(shape, dtype=np.uint8))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("value", [-0.1, 1.1, 255.0, np.nan, np.inf])
def test_floats_outside_0_to_1_are_refused(value):
    with pytest.raises(BadImage, match=r"\[0, 1\].*255"):
        load_image(np.full((2, 2, 3), value))


@pytest.mark.parametrize("kind", [np.int64, np.uint16, np.bool_, np.complex64, object])
def test_arrays_of_another_kind_are_refused_with_it(kind):
    with pytest.raises(BadImage, match=np.dtype(kind).name):
        load_image(np.zeros((2, 2, 3), dtype=kind))


@pytest.mark.parametrize("thing", [None, 7, b"bytes", [[1, 2]], {"path": "x"}])
def test_what_is_no_picture_is_refused_by_type(thing, unchecked):
    with pytest.raises(BadImage, match=type(thing).__name__):
        load_image(thing)


# -- files that are none -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "not an image"),
        (b"dear reader,\n", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image|opened"),
    ],
)
def test_files_that_hold_no_picture_are_refused_by_name(tmp_path, content, cause):
    (tmp_path / "thing.png").write_bytes(content)
    with pytest.raises(BadImage, match=cause) as error:
        load_image(tmp_path / "thing.png")
    assert "thing.png" in str(error.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP"])
def test_a_truncated_file_is_refused(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    (tmp_path / "half").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadImage, match=r"decoded|opened"):
        load_image(tmp_path / "half")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "PPM", "SGI", "BMP"])
def test_broken_bytes_raise_nothing_but_bad_image(tmp_path, kind):
    """Cut anywhere, and with bytes of the head changed: decoders raise of all kinds, users see one."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    data, rng, path, refused = encoded(Image.fromarray(noise), kind), random.Random(kind), tmp_path / "x", 0
    for trial in range(60):
        broken = bytearray(data)
        if trial % 2:
            broken = broken[: rng.randrange(len(data))]
        else:
            for _ in range(3):
                broken[rng.randrange(min(len(data), 120))] = rng.randrange(256)
        path.write_bytes(broken)
        try:
            assert load_image(path).mode == "RGB"
        except BadImage:
            refused += 1
    assert refused > 10


def test_a_decoder_that_fails_in_a_way_of_its_own(tmp_path):
    """The PPM reader raises ValueError on a size that is no number, already when the file is opened."""
    (tmp_path / "x.ppm").write_bytes(b"P6\n2x 2\n255\n" + bytes(12))
    with pytest.raises(BadImage, match=r"x\.ppm can't be opened"):
        load_image(tmp_path / "x.ppm")


def test_paths_that_lead_nowhere(tmp_path):
    with pytest.raises(BadImage, match=r"no such image file.*gone\.png"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(BadImage, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(BadImage, match="no such image file"):
        load_image("https://example.org/cat.png")
    with pytest.raises(BadImage, match="no such image file") as error:
        load_image("iVBORw0KGgo" * 1000)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(("name", "kind"), [("clip.mp4", "video"), ("voice.wav", "audio")])
def test_a_video_and_a_sound_are_refused_as_such(tmp_path, name, kind):
    (tmp_path / name).write_bytes(b"\0" * 64)
    with pytest.raises(BadImage, match=f"named as {kind}: only pictures are read"):
        load_image(tmp_path / name)
