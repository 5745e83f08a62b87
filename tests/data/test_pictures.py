"""Pictures in files: every mode and size comes out as one uint8 stack, and a bad file costs only itself."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from chaffinch.base.errors import InputError
from chaffinch.data import Observed, PictureFiles, pictures
from chaffinch.data.pictures import GREY, SIDE, decode, look, open_pictures

RNG = np.random.default_rng(0)


def encoded(picture, format="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def plain(value=90, size=(20, 20), mode="L"):
    return encoded(Image.new(mode, size, value))


def open_bytes(*sources):
    stamps = np.array([[len(source), row] for row, source in enumerate(sources)], np.int64).reshape(-1, 2)
    return open_pictures(sources, [f"p{row}" for row in range(len(sources))], stamps)


def claims(width, height):
    """The bytes of a small PNG whose header says it is large."""
    raw = bytearray(plain(size=(4, 4)))
    raw[16:24] = struct.pack(">II", width, height)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    return bytes(raw)


class TestModes:
    @pytest.mark.parametrize(
        ("mode", "value", "grey", "colour"),
        [
            ("1", 1, 255, (255, 255, 255)),
            ("L", 90, 90, (90, 90, 90)),
            ("RGB", (200, 0, 0), 60, (200, 0, 0)),
            ("RGBA", (200, 0, 0, 255), 60, (200, 0, 0)),
            ("RGBA", (200, 0, 0, 0), 255, (255, 255, 255)),  # transparent pixels lie on white
            ("LA", (0, 0), 255, (255, 255, 255)),
            ("LA", (90, 255), 90, (90, 90, 90)),
            ("I;16", 90 * 256 + 77, 90, (90, 90, 90)),  # the upper half of 16 bits
            ("I;16", 65535, 255, (255, 255, 255)),
        ],
    )
    def test_png(self, mode, value, grey, colour):
        raw = encoded(Image.new(mode, (6, 5), value))
        assert (decode(raw, (5, 6)) == grey).all()
        assert (decode(raw, (5, 6, 3)) == colour).all()

    def test_palette(self):
        raw = encoded(Image.new("RGB", (4, 4), (0, 100, 200)).quantize(4))
        assert Image.open(io.BytesIO(raw)).mode == "P"
        assert (decode(raw, (4, 4, 3)) == (0, 100, 200)).all()
        clear = encoded(Image.new("P", (4, 4), 0), transparency=0)
        assert (decode(clear, (4, 4)) == 255).all()

    def test_cmyk(self):
        raw = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")
        np.testing.assert_allclose(decode(raw, (8, 8, 3)), np.broadcast_to((255, 0, 0), (8, 8, 3)), atol=2)

    @pytest.mark.parametrize("dtype", [np.float32, np.int32])
    def test_wide_ranges_are_stretched_over_their_own(self, dtype):
        values = np.array([[-1000, 0], [1000, 3000]], dtype)
        raw = encoded(Image.fromarray(values), "TIFF")
        assert decode(raw, (2, 2)).tolist() == [[0, 64], [128, 255]]
        flat = encoded(Image.fromarray(np.full((2, 2), 7, dtype)), "TIFF")
        assert decode(flat, (2, 2)).tolist() == [[0, 0], [0, 0]]

    @pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
    def test_of_an_animation_the_first_frame(self, format):
        frames = [Image.new("L", (6, 6), value).convert("RGB") for value in (40, 200)]
        raw = encoded(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
        assert abs(int(decode(raw, (6, 6))[3, 3]) - 40) <= 1

    def test_the_orientation_is_obeyed(self):
        picture = Image.new("L", (8, 4))
        picture.putpixel((0, 0), 255)
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned a quarter clockwise
        raw = encoded(picture, "PNG", exif=exif)
        assert look(raw) == (8, 4, True)
        turned = decode(raw, (8, 4))
        assert np.argwhere(turned == 255).tolist() == [[0, 3]]

    @pytest.mark.parametrize("format", ["BMP", "JPEG", "PPM", "TIFF", "WEBP"])
    def test_formats(self, format):
        np.testing.assert_allclose(decode(encoded(Image.new("RGB", (9, 9), (90, 90, 90)), format), (9, 9)), 90, atol=2)

    def test_a_format_that_starts_programs_is_not_read(self):
        raw = encoded(Image.new("RGB", (9, 9)), "EPS")
        with pytest.raises(InputError, match="is no picture that is read here"):
            open_bytes(raw)


class TestSizes:
    def test_one_small_size_is_kept(self):
        values = RNG.integers(0, 256, (3, 7, 11), dtype=np.uint8)
        found = open_bytes(*(encoded(Image.fromarray(v)) for v in values))
        assert found.pictures.shape == (3, 7, 11)
        np.testing.assert_array_equal(found.pictures[:], values)
        assert found.note == "11 × 7 pixels, grey"

    def test_large_ones_are_shrunk_into_a_square(self):
        found = open_bytes(plain(size=(400, 200)), plain(size=(400, 200)))
        assert found.pictures.shape == (2, SIDE, SIDE)
        one = found.pictures[0]
        assert (one[28:84] == 90).all()  # twice as wide as high, whole, black above and below
        assert not one[:28].any()
        assert not one[84:].any()
        assert found.note == "400 × 200 pixels, grey, used at 112 × 112"

    def test_mixed_small_sizes_take_the_longest_side(self):
        found = open_bytes(plain(size=(10, 10)), plain(size=(30, 15)))
        assert found.pictures.shape == (2, 30, 30)
        assert (found.pictures[0] == 90).all()
        assert (found.pictures[1][8:22] == 90).all()
        assert found.note == "10 × 10 to 30 × 15 pixels, grey, used at 30 × 30"

    @pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1)])
    def test_extreme_shapes(self, size):
        assert open_bytes(plain(200, size=size), plain()).pictures[0].max() == 200

    def test_a_large_jpeg_keeps_its_content(self):
        values = np.zeros((800, 800), np.uint8)
        values[:, 400:] = 255
        small = decode(encoded(Image.fromarray(values), "JPEG"), (SIDE, SIDE))
        assert small[:, :54].max() < 10
        assert small[:, 58:].min() > 245

    def test_colour_only_where_a_header_says_so(self):
        assert open_bytes(plain(), plain()).pictures.ndim == 3
        mixed = open_bytes(plain(), plain((1, 2, 3), mode="RGB")).pictures
        assert mixed.shape == (2, 20, 20, 3)
        assert mixed[1][0, 0].tolist() == [1, 2, 3]
        assert mixed[0][0, 0].tolist() == [90, 90, 90]


class TestArray:
    @pytest.fixture
    def store(self):
        return open_bytes(*(plain(value) for value in (10, 20, 30, 40))).pictures

    def test_indexing_is_that_of_an_array(self, store):
        whole = np.asarray(store)
        assert (whole.shape, whole.dtype, store.ndim, len(store)) == (store.shape, store.dtype, 3, 4)
        for key in (
            0,
            -1,
            np.int64(2),
            slice(1, 3),
            slice(None, None, -2),
            [3, 0],
            np.array([True, False, True, True]),
        ):
            np.testing.assert_array_equal(store[key], whole[key])
        assert store[[]].shape == (0, 20, 20)
        assert [int(one[0, 0]) for one in store] == [10, 20, 30, 40]
        with pytest.raises(IndexError):
            store[4]
        assert np.asarray(store, np.float32).dtype == np.float32
        with pytest.raises(ValueError, match="no array to share"):
            np.asarray(store, copy=False)

    def test_some_of_them(self, store):
        part = store.only(np.array([3, 1]))
        assert part.shape == (2, 20, 20)
        np.testing.assert_array_equal(part[:], store[[3, 1]])
        np.testing.assert_array_equal(store.only(np.array([True, False, False, True]))[:], store[[0, 3]])

    def test_nothing_is_decoded_before_it_is_asked_for(self, store, monkeypatch):
        asked = []
        monkeypatch.setattr(pictures, "decode", lambda source, tile: asked.append(source) or np.zeros(tile, np.uint8))
        assert Observed(np.zeros(4, np.int64), ("a",), np.arange(4).astype(str), store).digest
        assert asked == []
        store[1:3]
        assert asked == [store.sources[1], store.sources[2]]

    def test_the_digest_follows_names_sizes_times_and_the_shape(self, store):
        def digest(names="abcd", stamps=((1, 2), (3, 4), (5, 6), (7, 8)), tile=(20, 20)):
            return PictureFiles(store.sources, names, np.array(stamps), np.arange(4), tile).digest

        changed = [
            digest(names="abce"),
            digest(stamps=((1, 2), (3, 4), (5, 6), (7, 9))),
            digest(stamps=((1, 2), (3, 4), (5, 6), (8, 8))),
            digest(tile=(20, 20, 3)),
        ]
        assert digest() == digest()
        assert len({digest(), *changed}) == 5
        observed = [
            Observed(np.zeros(4, np.int64), ("a",), np.arange(4).astype(str), store.only(np.array(rows)))
            for rows in ([0, 1, 2, 3], [0, 1, 3, 2])
        ]
        assert observed[0].digest != observed[1].digest


class TestUnreadable:
    BAD = {
        "empty": b"",
        "text": b"this is no picture",
        "truncated": encoded(Image.fromarray(RNG.integers(0, 256, (30, 30), dtype=np.uint8)))[:-200],
        "truncated-jpeg": encoded(Image.fromarray(RNG.integers(0, 256, (90, 90), dtype=np.uint8)), "JPEG")[:900],
        "bomb": claims(60_000, 60_000),
        "large": claims(9_000, 9_000),
        "no-pixels": claims(0, 0),
    }

    @pytest.mark.parametrize("kind", BAD)
    def test_in_a_small_set_it_is_left_out_by_name(self, kind):
        found = open_bytes(plain(10), self.BAD[kind], plain(30))
        assert found.kept.tolist() == [0, 2]
        assert [int(one[0, 0]) for one in found.pictures] == [10, 30]
        assert len(found.warnings) == 1
        assert found.warnings[0].startswith("p1 is ")
        assert found.warnings[0].endswith("; it is left out")

    def test_its_size_and_colour_decide_nothing(self):
        large = encoded(Image.fromarray(RNG.integers(0, 256, (90, 90, 3), dtype=np.uint8)))[:-2000]
        assert look(large) == (90, 90, False)
        found = open_bytes(plain(), large)
        assert found.pictures.shape == (1, 20, 20)
        assert found.note == "20 × 20 pixels, grey"

    @pytest.mark.parametrize("kind", ["text", "truncated", "bomb"])
    def test_in_a_large_set_a_grey_picture_stands_in_its_place(self, kind, monkeypatch):
        monkeypatch.setattr(pictures, "CHECKED", 2)
        monkeypatch.setattr(pictures, "HEADERS", 2)
        found = open_bytes(plain(10), self.BAD[kind], plain(30), plain(40))
        assert found.kept.tolist() == [0, 1, 2, 3]
        assert found.pictures.undecoded == {}
        assert (found.pictures[1] == GREY).all()
        assert set(found.pictures.undecoded) == {1}
        assert set(found.pictures.only(np.array([2, 1])).undecoded) == {1}
        assert (found.pictures[2] == 30).all()

    def test_empty_files_of_a_large_set_are_left_out_without_a_look(self, monkeypatch):
        monkeypatch.setattr(pictures, "CHECKED", 2)
        monkeypatch.setattr(pictures, "HEADERS", 2)
        assert open_bytes(plain(), b"", plain(), plain()).warnings == ("p1 is empty (0 bytes); it is left out",)

    @pytest.mark.parametrize("limit", ["CHECKED_BYTES", "CHECKED_PIXELS"])
    def test_few_but_large_files_are_not_decoded_when_opened(self, limit, monkeypatch):
        monkeypatch.setattr(pictures, limit, 100)
        monkeypatch.setattr(pictures, "decode", lambda *_: pytest.fail("decoded"))
        assert len(open_bytes(plain(), plain()).pictures) == 2

    def test_nothing_usable_is_an_error_that_names_the_first(self):
        with pytest.raises(InputError, match=r"none of 2 pictures looked at can be read; the first: p0 is empty"):
            open_bytes(b"", b"x")

    def test_a_link_put_in_the_place_of_a_file_is_not_followed(self, tmp_path):
        (tmp_path / "secret.png").write_bytes(plain(99))
        path = tmp_path / "p.png"
        path.write_bytes(plain(10))
        store = open_pictures([str(path)], ["p.png"], np.array([[path.stat().st_size, 0]])).pictures
        path.unlink()
        path.symlink_to(tmp_path / "secret.png")
        assert (store[0] == GREY).all()

    def test_being_told_what_failed_before(self):
        store = open_bytes(plain(), plain()).pictures
        store.recall(np.array([1]))
        assert store.undecoded == {1: "cannot be decoded"}


@pytest.mark.filterwarnings("ignore::UserWarning")  # what Pillow says of damaged headers
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_mutated_bytes_give_a_picture_or_a_reason(format):
    rng = np.random.default_rng(5)
    good = encoded(Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)), format)
    outcomes = set()
    for _ in range(150):
        raw = bytearray(good)
        for _ in range(rng.integers(8)):
            raw[rng.integers(len(raw))] = rng.integers(256)
        raw = bytes(raw[: rng.choice([len(raw), rng.integers(len(raw))])])
        found = open_bytes(plain(), raw)
        outcomes.add(len(found.pictures))
        assert found.pictures[:].dtype == np.uint8
        assert len(found.warnings) == 2 - len(found.pictures)
    assert outcomes == {1, 2}
