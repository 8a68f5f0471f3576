"""Frames of videos, by time and picture, against FFmpeg's own program."""

import io
import shutil
import subprocess
from pathlib import Path
from typing import Final

import numpy as np
import psutil
import pytest
from PIL import Image

from image_search.errors import ImageTooCostlyError, ImageTooLargeError, NotAnImageError
from image_search.values import Pixels
from image_search.videos import (
    Frame,
    Sampling,
    VideoFrames,
    VideoLimits,
    looks_like_video,
    read_frames,
)
from tests.support.videos import RATE, SIZE, scene, write_video

pytestmark = pytest.mark.slow

FFMPEG: Final = shutil.which("ffmpeg")
# Of 255, on average; different scenes differ by 80. Colours are coded for four pixels together.
CLOSE: Final = 12.0


def read(
    path: Path, sampling: Sampling | None = None, **options: int
) -> tuple[list[Frame], VideoFrames]:
    with (
        path.open("rb") as file,
        read_frames(
            file, sampling, max_pixels=10_000_000, min_side=options.get("min_side", 48)
        ) as frames,
    ):
        return list(frames), frames


def times(path: Path, sampling: Sampling | None = None) -> list[float]:
    return [frame.time for frame in read(path, sampling)[0]]


def difference(one: Image.Image, other: Image.Image | Pixels) -> float:
    pixels = np.asarray(one, np.float32), np.asarray(other, np.float32)
    assert pixels[0].shape == pixels[1].shape
    return float(np.abs(pixels[0] - pixels[1]).mean())


def by_ffmpeg(path: Path, time: float) -> Image.Image:
    """The first frame at or after a time, as FFmpeg's program shows it."""
    if FFMPEG is None:
        pytest.skip("there is no ffmpeg")
    done = subprocess.run(
        [
            *(FFMPEG, "-v", "error", "-i", path, "-vf", f"select=gte(t\\,{time - 0.0005})"),
            *("-frames:v", "1", "-f", "image2pipe", "-c:v", "png", "-"),
        ],
        capture_output=True,
        check=True,
    )
    return Image.open(io.BytesIO(done.stdout)).convert("RGB")


KINDS: Final = [
    ("libx264", "a.mp4", "yuv420p"),
    ("libx264", "a.mkv", "yuv420p"),
    ("libx264", "a.mov", "yuv422p"),
    ("libx264", "a.ts", "yuv420p"),
    ("libx264", "a.mp4", "yuv420p10le"),
    ("libx265", "a.mp4", "yuv420p"),
    ("libx265", "a.mkv", "yuv420p10le"),
    ("libvpx-vp9", "a.webm", "yuv420p"),
    ("libsvtav1", "a.mp4", "yuv420p"),
    ("libsvtav1", "a.webm", "yuv420p10le"),
    ("mpeg4", "a.avi", "yuv420p"),
    ("mpeg4", "a.mp4", "yuv420p"),
    ("mpeg2video", "a.mpg", "yuv420p"),
    ("mjpeg", "a.avi", "yuvj420p"),
]


@pytest.mark.parametrize(("codec", "name", "pixel_format"), KINDS)
def test_one_frame_a_second_is_that_of_ffmpeg(
    tmp_path: Path, codec: str, name: str, pixel_format: str
) -> None:
    rate = 25 if codec == "mpeg2video" else RATE
    options = {"log-level": "none"} if codec == "libx265" else {}
    path = write_video(
        tmp_path / name, codec=codec, pixel_format=pixel_format, rate=rate, options=options
    )
    found, video = read(path)
    assert [frame.time for frame in found] == [0, 1, 2, 3, 4]
    # MPEG program streams do not say it, and it is a guess.
    assert video.duration == pytest.approx(5, abs=2 if name == "a.mpg" else 0.2)
    assert video.size == SIZE
    assert video.damage == ""
    for number, frame in enumerate(found):
        assert difference(frame.image, scene(number)) < CLOSE
    assert difference(found[3].image, by_ffmpeg(path, 3)) < CLOSE


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of H.264, with a key frame each two seconds and the index in front."""
    return write_video(
        tmp_path_factory.mktemp("plain") / "a.mp4",
        seconds=6,
        options={"g": "20", "sc_threshold": "0"},
        container_options={"movflags": "faststart"},
    )


def ffmpeg(*arguments: object) -> None:
    if FFMPEG is None:
        pytest.skip("there is no ffmpeg")
    subprocess.run([FFMPEG, "-v", "error", "-y", *map(str, arguments)], check=True)


def test_samplings(plain: Path, tmp_path: Path) -> None:
    assert times(plain, Sampling(frames_per_second=0.5)) == [0, 2, 4]
    # What hardly differs from the last one is left out, unless it is wanted.
    assert times(plain, Sampling(frames_per_second=RATE)) == [0, 1, 2, 3, 4, 5]
    every = Sampling(frames_per_second=2, distinct=False)
    assert times(plain, every) == [n / 2 for n in range(12)]
    assert times(plain, Sampling(key_frames=True)) == [0, 2, 4]
    assert times(plain, Sampling(max_frames=3)) == [1, 3, 5]
    assert times(plain, Sampling(max_frames=1)) == [3]
    assert times(plain, Sampling(max_frames=1, key_frames=True)) == [4]
    assert times(plain, Sampling(times=(0.5, 3.3, 5.9), distinct=False)) == [0.5, 3.3, 5.9]
    # One key frame, which is before the middle, is better than none.
    single = write_video(tmp_path / "b.mp4", seconds=2, options={"g": "100"})
    assert times(single, Sampling(max_frames=1, key_frames=True)) == [0]


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.avi", "a.ts"])
def test_what_is_far_apart_is_jumped_to(tmp_path: Path, name: str) -> None:
    codec = {"a.webm": "libvpx-vp9", "a.avi": "mpeg4"}.get(name, "libx264")
    options = {"g": "10"} | ({"deadline": "realtime", "cpu-used": "8"} if "vp9" in codec else {})
    path = write_video(tmp_path / name, codec=codec, rate=2, seconds=100, options=options)
    wanted = (3.0, 40.0, 41.0, 97.5)
    found, video = read(path, Sampling(times=wanted))
    assert [frame.time for frame in found] == list(wanted)
    for frame in found:
        assert difference(frame.image, scene(int(frame.time))) < CLOSE
    assert video.damage == ""
    assert times(path, Sampling(max_frames=4)) == [12.5, 37.5, 62.5, 87.5]


GROUPS: Final = {
    "at each time": ("libx264", "a.mp4", {"g": "5", "sc_threshold": "0"}),
    "between times": ("libx264", "a.mkv", {"g": "7", "sc_threshold": "0"}),
    "open": ("libx264", "a.ts", {"x264-params": "open-gop=1:keyint=8:min-keyint=8:scenecut=0"}),
    "none, and it is said": (
        "libx264",
        "a.mkv",
        {"x264-params": "intra-refresh=1:keyint=15:scenecut=0:ref=1"},
    ),
    "open in HEVC": (
        "libx265",
        "a.mp4",
        {"x265-params": "log-level=none:open-gop=1:keyint=8:min-keyint=8:scenecut=0"},
    ),
    "of VP9": ("libvpx-vp9", "a.webm", {"g": "7", "deadline": "realtime"}),
    "of MPEG-4": ("mpeg4", "a.mp4", {"g": "7", "bf": "2", "sc_threshold": "1000000000"}),
    "each frame": ("mjpeg", "a.avi", {}),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_wherever_key_frames_are_the_same_frames_are_taken(tmp_path: Path, kind: str) -> None:
    """What lies between two times is not decoded where a key frame allows it."""
    codec, name, options = GROUPS[kind]
    # A bar that moves, so that each frame is another; and times beside those of key frames.
    pictures = [scene(frame // RATE) for frame in range(6 * RATE)]
    for number, picture in enumerate(pictures):
        picture[:, number % RATE * 6 : number % RATE * 6 + 6] = 255 * (number % 2)
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(
        tmp_path / name, pictures, codec=codec, pixel_format=pixel_format, options=options
    )
    for rate in (1.0, 0.4, 3.0):
        found, video = read(path, Sampling(frames_per_second=rate, distinct=False))
        due = [number / rate for number in range(int(6 * rate - 1e-9) + 1)]
        shown = [next(t / RATE for t in range(61) if t / RATE > one - 0.001) for one in due]
        assert [frame.time for frame in found] == pytest.approx([t for t in shown if t < 5.95])
        for frame in found:
            assert difference(frame.image, pictures[round(frame.time * RATE)]) < CLOSE
        assert video.damage == ""
    assert difference(found[7].image, by_ffmpeg(path, found[7].time)) < CLOSE / 2


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_videos_of_phones_are_turned(tmp_path: Path, degrees: int) -> None:
    path = write_video(
        tmp_path / "turned.mp4",
        seconds=3,
        change=lambda _, stream: stream.set_display_rotation(degrees),
    )
    found, video = read(path)
    assert video.size == (SIZE if degrees == 180 else SIZE[::-1])
    assert difference(found[2].image, by_ffmpeg(path, 2)) < CLOSE
    expected = Image.fromarray(scene(2)).rotate(degrees, expand=True)
    assert difference(found[2].image, expected) < CLOSE


def test_other_clocks(tmp_path: Path, plain: Path) -> None:
    # Starts at any time, as transport streams and recordings do.
    for name in ("a.ts", "b.mkv"):
        path = tmp_path / name
        ffmpeg("-i", plain, "-c", "copy", "-output_ts_offset", "1000", path)
        found, video = read(path)
        assert [frame.time for frame in found] == [0, 1, 2, 3, 4, 5]
        assert video.duration == pytest.approx(6, abs=0.2)
    # A variable rate.
    moments = [0, 0.1, 0.5, 1.3, 1.4, 4.9, 5.0, 7.1]
    pictures = [scene(number) for number in range(len(moments))]
    path = write_video(tmp_path / "c.mkv", pictures, times=moments)
    assert times(path) == [0, 1.3, 4.9, 5.0, 7.1]
    assert times(path, Sampling(frames_per_second=100)) == moments
    assert difference(read(path)[0][1].image, by_ffmpeg(path, 1)) < CLOSE
    # Two recordings one after another, in a format that allows it: the clock starts anew.
    both = tmp_path / "d.mpg"
    program = write_video(tmp_path / "e.mpg", codec="mpeg2video", rate=25, seconds=3)
    both.write_bytes(program.read_bytes() * 2)
    found, _ = read(both)
    assert len(found) >= 5
    assert [frame.time for frame in found] == sorted({frame.time for frame in found})


def test_the_length_of_what_does_not_say_it(tmp_path: Path) -> None:
    """As browsers record."""
    path = tmp_path / "a.webm"
    write_video(path, codec="libvpx-vp9", seconds=3, container_options={"live": "1"})
    found, video = read(path)
    assert video.duration == pytest.approx(3, abs=0.1)
    assert [frame.time for frame in found] == [0, 1, 2]


def test_shapes_and_colours(tmp_path: Path) -> None:
    # Pixels that are not square.
    wide = write_video(tmp_path / "a.mp4", [scene(1)] * 3)
    ffmpeg("-i", wide, "-vf", "setsar=2", "-c:v", "libx264", tmp_path / "b.mp4")
    [frame], video = read(tmp_path / "b.mp4")
    assert video.size == (2 * SIZE[0], SIZE[1])
    assert difference(frame.image, scene(1, (2 * SIZE[0], SIZE[1]))) < CLOSE
    # Large pictures are reduced by a whole factor, and their size is told.
    large = write_video(tmp_path / "c.mp4", [scene(1, (642, 482))] * 3)
    [frame], video = read(large, min_side=100)
    assert (video.size, frame.image.size) == ((642, 482), (161, 121))
    # Grey, an alpha channel, all of the range, colours for each pixel.
    for codec, format_, name in (
        ("ffv1", "gray", "g.mkv"),
        ("ffv1", "yuva420p", "h.mkv"),
        ("ffv1", "yuv444p16le", "i.mkv"),
        ("ffv1", "bgra", "j.mkv"),
        ("libx264", "yuvj420p", "k.mp4"),
    ):
        path = write_video(tmp_path / name, [scene(1)] * 3, codec=codec, pixel_format=format_)
        assert difference(read(path)[0][0].image, by_ffmpeg(path, 0)) < CLOSE, name


@pytest.mark.parametrize(("transfer", "white"), [("smpte2084", 0.58), ("arib-std-b67", 0.75)])
def test_a_high_dynamic_range_is_shown_as_screens_do(
    tmp_path: Path, transfer: str, white: float
) -> None:
    """Grey steps up to white, coded as BT.2100 says: as bright as sRGB has them, about."""
    steps = np.linspace(0, white, 4)
    codes = np.repeat(np.repeat((64 + steps * 876).round(), 16)[np.newaxis], 48, axis=0)
    raw = tmp_path / "raw.yuv"
    chroma = np.full((2, 24, 32), 512)
    planes = [codes, *chroma]
    raw.write_bytes(b"".join(plane.astype("<u2").tobytes() for plane in planes))
    path = tmp_path / "hdr.mkv"
    colours = ["-color_primaries", "bt2020", "-color_trc", transfer, "-colorspace", "bt2020nc"]
    ffmpeg(
        *("-f", "rawvideo", "-pix_fmt", "yuv420p10le", "-s", "64x48", "-i", raw, *colours),
        *("-c:v", "libx265", "-x265-params", "log-level=none:lossless=1", path),
    )
    [frame], _ = read(path)
    shown = np.asarray(frame.image, float)[24, 8::16].mean(axis=1)
    # White is near white, black is black, and nothing is cut.
    assert shown[0] == 0
    assert shown[3] == pytest.approx(235, abs=20)
    assert (np.diff(shown) > 20).all()


def test_what_files_tell_of_themselves(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "a.mov",
        seconds=1,
        container_options={"movflags": "use_metadata_tags"},
        metadata={
            "creation_time": "2024-05-06T07:08:09.000000Z",
            "com.apple.quicktime.creationdate": "2024-05-06T09:08:09+0200",
            "com.apple.quicktime.make": "Apple",
            "com.apple.quicktime.model": "iPhone 15",
            "com.apple.quicktime.location.ISO6709": "+48.1374-011.5755+519.000/",
        },
    )
    assert read(path)[1].fields == {
        "width": 64,
        "height": 48,
        "format": "mp4",
        "taken": 1714986489,
        "camera": "Apple iPhone 15",
        "latitude": 48.1374,
        "longitude": -11.5755,
    }


# --- what is no video, or no whole one ---


def test_music_with_a_cover_has_no_pictures(tmp_path: Path) -> None:
    Image.fromarray(scene(1)).save(tmp_path / "cover.png")
    tone = ("-f", "lavfi", "-i", "sine=duration=1")
    ffmpeg(
        *(*tone, "-i", tmp_path / "cover.png", "-map", "0", "-map", "1", "-c:v", "copy"),
        *("-disposition:v", "attached_pic", tmp_path / "music.m4a"),
    )
    ffmpeg(*tone, tmp_path / "sound.mp4")
    for name in ("music.m4a", "sound.mp4"):
        with pytest.raises(NotAnImageError, match="has sound, but no video"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"no video\n" * 100, "not a video"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n", "not a video"),
        (b"ffconcat version 1.0\nfile '{other}'\n", "not a video"),
        (b"<?xml version='1.0'?><MPD><BaseURL>{other}</BaseURL></MPD>", "not a video"),
        (
            b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
            "not a",
        ),
    ],
)
def test_lists_of_files_are_no_videos(
    plain: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "list.mp4"
    path.write_bytes(content.replace(b"{other}", str(plain).encode()))
    with pytest.raises(NotAnImageError, match=message):
        read(path)


def test_truncated_at_ten_places(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [
        scene(n // RATE) // 2 + rng.integers(0, 60, (48, 64, 3), np.uint8) for n in range(60)
    ]
    whole = write_video(
        tmp_path / "a.mp4",
        pictures,
        options={"g": "10"},
        container_options={"movflags": "faststart"},
    )
    content = whole.read_bytes()
    last = readable = 0
    for tenth in range(10):
        path = tmp_path / f"{tenth}.mp4"
        path.write_bytes(content[: len(content) * tenth // 10])
        try:
            found, video = read(path)
        except NotAnImageError:
            assert tenth < 3
            continue
        readable += 1
        moments = [frame.time for frame in found]
        assert moments == list(range(len(moments)))
        assert len(moments) >= last
        last = len(moments)
        for frame in found:
            assert difference(frame.image, pictures[int(frame.time) * RATE]) < 2 * CLOSE
        if len(moments) < 5:
            assert f"read up to 0:0{int(video.position)} of 0:06" in video.damage
    assert (last, readable) >= (5, 7)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi"])
def test_damaged_bytes_cost_what_they_are_in(tmp_path: Path, name: str) -> None:
    codec = "mpeg4" if name == "a.avi" else "libx264"
    path = write_video(tmp_path / name, codec=codec, seconds=6, options={"g": "10"})
    whole = path.read_bytes()
    rng = np.random.default_rng(7)
    good = 0
    for _ in range(4):
        content = np.frombuffer(whole, np.uint8).copy()
        places = rng.integers(len(whole) // 10, len(whole) * 9 // 10, 8)
        content[places] ^= np.uint8(1) << rng.integers(0, 8, 8).astype(np.uint8)
        path.write_bytes(content.tobytes())
        try:
            found, _ = read(path)
        except NotAnImageError:
            continue
        moments = [frame.time for frame in found]
        assert moments == sorted(set(moments))
        good += sum(difference(f.image, scene(min(int(f.time), 5))) < 2 * CLOSE for f in found)
    assert good >= 10


# --- limits ---


def test_pictures_that_are_too_large_are_refused(plain: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(ImageTooLargeError, match="64x48, which is more than 3,000 pixels"),
        plain.open("rb") as file,
    ):
        read_frames(file, max_pixels=3000, min_side=48)
    # What the container says is small, and what the pictures are is not: 32768x32768, H.264.
    huge = bytearray(write_video(tmp_path / "a.ivf", codec="libvpx-vp9", seconds=1).read_bytes())
    header = huge.index(b"DKIF") + 12
    huge[header : header + 4] = b"\x40\x00\x30\x00"
    # A frame header of VP9 has its size: 16 bits each, less one, after the sync code.
    sync = huge.index(b"\x49\x83\x42")
    bits = int.from_bytes(huge[sync + 3 : sync + 9])
    size = (32767 << 16) | 32767
    # Three bits of the colour space and one of the range come first.
    bits = bits & ~(0xFFFFFFFF << 12) | size << 12
    huge[sync + 3 : sync + 9] = bits.to_bytes(6)
    (tmp_path / "b.ivf").write_bytes(huge)
    with pytest.raises((ImageTooLargeError, NotAnImageError)):
        read(tmp_path / "b.ivf")


def test_limits_of_time_and_memory(tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    path = write_video(tmp_path / "a.mp4", [scene(n, (1280, 960)) for n in range(30)])
    for limits, message in (
        (VideoLimits(memory=16 * 2**20), "more than 16 MiB of memory"),
        (VideoLimits(cpu_seconds=0.05), "takes too long"),
        (VideoLimits(frame_cpu_seconds=0.001), "takes too long"),
    ):
        with (
            pytest.raises(ImageTooCostlyError, match=message),
            path.open("rb") as file,
            read_frames(
                file, Sampling(frames_per_second=30), max_pixels=10**7, min_side=960, limits=limits
            ) as frames,
        ):
            list(frames)
    # Bytes, as the service has them, and who stops early.
    with read_frames(path.read_bytes(), max_pixels=10**7, min_side=100) as frames:
        assert next(iter(frames)).image.size == (143, 107)
    # All that was started has ended.
    started = set(psutil.Process().children()) - before
    assert not [child for child in started if child.status() != "zombie"]


def test_which_files_are_videos(tmp_path: Path, plain: Path) -> None:
    for name in ("a.mp4", "a.mkv", "a.mov", "a.ts", "a.webm", "a.avi", "a.mpg", "a.flv", "a.wmv"):
        codec = {"a.webm": "libvpx-vp9", "a.mpg": "mpeg2video", "a.flv": "flv1"}.get(name, "mpeg4")
        path = write_video(tmp_path / name, [scene(1)], codec=codec, rate=25)
        assert looks_like_video(path.read_bytes()[:64]), name
    for start in (b"", b"GIF89a" + b"\0" * 60, b"import { Get } from 'x';", b"Get started\n" * 9):
        assert not looks_like_video(start)
    assert not looks_like_video(b"\0\0\0\x1cftypavif" + b"\0" * 50)
    assert looks_like_video(plain.read_bytes()[:16])


def test_ogg_with_pictures_is_a_video_and_with_sound_alone_none(
    tmp_path: Path, plain: Path
) -> None:
    ffmpeg("-i", plain, "-c:v", "libtheora", tmp_path / "theora.ogv")
    write_video(tmp_path / "vp8.ogv", codec="libvpx", seconds=6)
    for name in ("theora.ogv", "vp8.ogv"):
        assert looks_like_video((tmp_path / name).read_bytes()[:64]), name
        assert times(tmp_path / name) == [0, 1, 2, 3, 4, 5]
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", tmp_path / "sound.ogg")
    assert not looks_like_video((tmp_path / "sound.ogg").read_bytes()[:64])
