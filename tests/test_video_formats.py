"""Pixel formats, colours, rotation, aspect and encoders of enlarged videos."""

from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="PyAV is not installed")

import av

from dasr_ops.models import DASR, Degradation_Predictor, MSRResNetDynamic, Upscaler
from dasr_ops.models.video import VideoError, VideoOptions, VideoWarning, encoders, upscale_video
from dasr_ops.models.video.codecs import best_format
from dasr_ops.models.video.layout import layout_of
from dasr_ops.models.video.probe import read_source

from .video_tools import SIZE, Plain, fill, make_clip, packets, planes, times

LOSSLESS = VideoOptions(codec="ffv1")


def needs(name: str):
    return pytest.mark.skipif(name not in encoders(), reason=f"this PyAV has no {name}")


def flat(pixel_format: str, values: tuple[int, ...], size: tuple[int, int] = SIZE):
    """Frames of one colour, but for a ramp of luma in the first plane."""
    layout = layout_of(pixel_format)
    kind = np.uint8 if layout.depth == 8 else np.uint16

    def make(number: int):
        samples = [
            np.full((height, width), value, kind)
            for (width, height), value in zip(layout.plane_sizes(*size), values, strict=True)
        ]
        unit = 2 ** (layout.depth - 8)
        samples[0][:] = (16 * unit + (np.arange(size[0]) * (219 * unit) // (size[0] - 1)))[None]
        return fill(av.VideoFrame(*size, pixel_format), samples)

    return make


@pytest.mark.parametrize("matrix", [1, 5, 6, 9])
@pytest.mark.parametrize("full", [1, 2])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le", "yuv444p", "yuv422p10le"])
def test_luma_ramp_and_tags_come_through(tmp_path, matrix, full, pixel_format):
    """Grey is grey in every matrix: a lossless encoder returns each sample four times."""
    unit = 4 if "10" in pixel_format else 1
    source = make_clip(
        *(tmp_path / "in.mkv", 2),
        codec="ffv1",
        pixel_format=pixel_format,
        make=flat(pixel_format, (0, 128 * unit, 128 * unit)),
        colorspace=matrix,
        color_range=full,
        color_primaries=1,
        color_trc=1,
    )
    target = tmp_path / "out.mkv"
    summary = upscale_video(source, target, Plain(), options=LOSSLESS)
    assert summary.pixel_format == pixel_format
    for before, after in zip(planes(source), planes(target), strict=True):
        assert np.array_equal(after[0], before[0].repeat(4, 0).repeat(4, 1))
        assert (after[1] == 128 * unit).all() and (after[2] == 128 * unit).all()
    facts = read_source(target)
    assert facts.matrix_tag == matrix and facts.range_tag == full
    assert facts.primaries == 1 and facts.transfer == 1


@pytest.mark.parametrize(("matrix", "weights"), [(1, (0.2126, 0.0722)), (6, (0.299, 0.114))])
def test_the_network_sees_true_colours(tmp_path, matrix, weights):
    """Limited range, one colour: what it is in RGB by the standard's formula."""
    source = make_clip(
        *(tmp_path / "in.mkv", 1),
        codec="ffv1",
        make=lambda number: fill(
            av.VideoFrame(*SIZE, "yuv420p"),
            [
                np.full((24, 32), 120, np.uint8),
                *[np.full((12, 16), c, np.uint8) for c in (100, 150)],
            ],
        ),
        colorspace=matrix,
        color_range=1,
    )
    upscaler = Plain()
    upscale_video(source, tmp_path / "out.mkv", upscaler, options=LOSSLESS)
    kr, kb = weights
    y, cb, cr = (120 - 16) / 219, (100 - 128) / 224, (150 - 128) / 224
    red, blue = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    wanted = torch.tensor([red, green, blue]).view(1, 3, 1, 1).expand(1, 3, 24, 32)
    torch.testing.assert_close(upscaler.seen[0], wanted, rtol=0, atol=1e-6)
    for after, value in zip(planes(tmp_path / "out.mkv")[0], (120, 100, 150), strict=True):
        assert (after == value).all()


def test_untagged_small_video_names_its_matrix(tmp_path):
    """Enlarged beyond 720 rows, players would guess Rec. 709."""
    source = make_clip(tmp_path / "in.mkv", 1, codec="ffv1")
    assert read_source(source).matrix_tag == 6
    upscale_video(source, tmp_path / "out.mkv", Plain(), options=LOSSLESS)
    with av.open(str(tmp_path / "out.mkv")) as result:
        assert next(result.decode(video=0)).colorspace == 6


@needs("libx265")
def test_hdr_keeps_tags_and_depth_and_warns(tmp_path):
    source = make_clip(
        *(tmp_path / "in.mkv", 3),
        codec="libx265",
        options={"x265-params": "log-level=none"},
        size=(64, 48),
        pixel_format="yuv420p10le",
        make=flat("yuv420p10le", (0, 512, 512), (64, 48)),
        colorspace=9,
        color_range=1,
        color_primaries=9,
        color_trc=16,
    )
    target = tmp_path / "out.mp4"
    with pytest.warns(VideoWarning, match=r"HDR \(PQ\)"):
        summary = upscale_video(
            source, target, Plain(), options=VideoOptions(codec="hevc", preset="ultrafast")
        )
    assert (summary.codec, summary.pixel_format) == ("libx265", "yuv420p10le")
    facts = read_source(target)
    assert (facts.matrix_tag, facts.primaries, facts.transfer) == (9, 9, 16)
    with av.open(str(target)) as result:
        assert result.streams.video[0].codec_context.codec_tag == "hvc1"


@pytest.mark.parametrize(
    ("degrees", "hflip", "turn"),
    [
        (90, False, lambda image: np.rot90(image, 1)),
        (180, False, lambda image: np.rot90(image, 2)),
        (270, False, lambda image: np.rot90(image, 3)),
        (0, True, lambda image: image[:, ::-1]),
    ],
)
def test_rotation_is_applied(tmp_path, degrees, hflip, turn):
    plain = make_clip(
        tmp_path / "plain.mp4", 2, options={"qp": "0"}, sample_aspect_ratio=Fraction(4, 3)
    )
    source = tmp_path / "in.mp4"
    with av.open(str(plain)) as old, av.open(str(source), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write display matrices")
        stream.set_display_rotation(degrees, hflip)
        for packet in old.demux():
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    target = tmp_path / "out.mkv"
    options = VideoOptions(preset="ultrafast", crf=0)  # lossless
    summary = upscale_video(source, target, Plain(), options=options)
    upright = turn(planes(plain)[0][0])
    assert summary.size == (4 * upright.shape[1], 4 * upright.shape[0])
    error = planes(target)[0][0].astype(int) - upright.repeat(4, 0).repeat(4, 1)
    assert np.abs(error).max() <= 1  # of colours that RGB cannot show
    facts = read_source(target)
    assert facts.orientation == (False, False, False)
    assert facts.aspect == (Fraction(3, 4) if degrees in (90, 270) else Fraction(4, 3))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_pixel_aspect_is_kept(tmp_path, suffix):
    source = make_clip(tmp_path / "in.mp4", 2, sample_aspect_ratio=Fraction(16, 11))
    target = tmp_path / f"out{suffix}"
    upscale_video(source, target, Plain(), options=VideoOptions(preset="ultrafast"))
    assert read_source(target).aspect == Fraction(16, 11)


def test_pixel_aspect_that_cannot_be_written_is_said(tmp_path):
    source = make_clip(tmp_path / "in.mp4", 2, sample_aspect_ratio=Fraction(16, 11))
    with pytest.warns(VideoWarning, match="16:11"):
        upscale_video(source, tmp_path / "out.mkv", Plain(), options=LOSSLESS)


@needs("prores_ks")
def test_full_range_becomes_limited_where_a_format_has_no_other(tmp_path):
    source = make_clip(
        *(tmp_path / "in.mkv", 2),
        codec="ffv1",
        make=flat("yuv420p", (0, 128, 128)),
        color_range=2,
        colorspace=1,
    )
    target = tmp_path / "out.mov"
    upscale_video(source, target, Plain(), options=VideoOptions(codec="prores"))
    before = planes(source)[0][0].repeat(4, 0).repeat(4, 1) / 255
    after = (planes(target)[0][0] / 4 - 16) / 219
    assert np.abs(after - before).mean() < 0.005
    assert read_source(target).range_tag != 2


def test_odd_sides(tmp_path):
    """33 x 25 in 4:4:4 and in 4:2:0; three times that is odd again."""
    for pixel_format, size in (("yuv444p", (99, 75)), ("yuv420p", (98, 74))):
        source = make_clip(
            *(tmp_path / f"{pixel_format}.mkv", 2),
            codec="ffv1",
            size=(33, 25),
            pixel_format=pixel_format,
            make=flat(pixel_format, (0, 128, 128), (33, 25)),
        )
        target = tmp_path / f"{pixel_format}_out.mkv"
        summary = upscale_video(source, target, Plain(scale=3), options=LOSSLESS)
        assert summary.size == size
        wanted = planes(source)[0][0].repeat(3, 0).repeat(3, 1)[: size[1], : size[0]]
        assert np.array_equal(planes(target)[0][0], wanted)


def test_rgb_and_opacity_stay_in_a_lossless_encoder(tmp_path):
    def make(number: int):
        rng = np.random.default_rng(number)
        return fill(
            av.VideoFrame(*SIZE, "gbrap"),
            [rng.integers(0, 256, (24, 32), dtype=np.uint8) for _ in range(3)]
            + [np.full((24, 32), 77, np.uint8)],
        )

    source = make_clip(
        *(tmp_path / "in.mkv", 2),
        codec="ffv1",
        pixel_format="bgra",
        make=lambda number: make(number).reformat(format="bgra"),
    )
    target = tmp_path / "out.mkv"
    summary = upscale_video(source, target, Plain(), options=LOSSLESS)
    assert summary.pixel_format == "bgra"
    for before, after in zip(planes(source), planes(target), strict=True):
        for a, b in zip(before, after, strict=True):
            assert np.array_equal(b, a.repeat(4, 0).repeat(4, 1))
    with pytest.warns(VideoWarning, match="opacity is left out"):
        upscale_video(source, tmp_path / "out.mp4", Plain())


def test_grey(tmp_path):
    source = make_clip(
        *(tmp_path / "in.mkv", 2),
        codec="ffv1",
        pixel_format="gray",
        make=flat("gray", (0,)),
    )
    for name, options, pixel_format in (
        ("a.mkv", LOSSLESS, "gray"),
        ("b.mp4", VideoOptions(preset="ultrafast", crf=0), "yuv420p"),
    ):
        summary = upscale_video(source, tmp_path / name, Plain(), options=options)
        assert summary.pixel_format == pixel_format
    before = planes(source)[0][0].repeat(4, 0).repeat(4, 1)
    assert np.array_equal(planes(tmp_path / "a.mkv")[0][0], before)
    limited = planes(tmp_path / "b.mp4")[0][0].astype(float)
    assert np.abs((limited - 16) / 219 * 255 - before).max() <= 0.6 + 255 / 219


@pytest.mark.parametrize(
    ("source", "codec", "wanted"),
    [
        ("yuv420p", "libx264", "yuv420p"),
        ("yuvj420p", "libx264", "yuv420p"),
        ("nv12", "libx264", "yuv420p"),
        ("yuv422p10le", "libx264", "yuv422p10le"),
        ("yuv420p12le", "libx264", "yuv420p10le"),
        ("yuv444p", "libx264", "yuv444p"),
        ("rgb24", "libx264", "yuv420p"),
        ("gray", "libx264", "yuv420p"),
        ("rgb48le", "libx265", "yuv420p12le"),
        ("yuv420p10le", "libsvtav1", "yuv420p10le"),
        ("yuv444p10le", "libsvtav1", "yuv420p10le"),
        ("yuv420p", "prores_ks", "yuv422p10le"),
        ("yuva444p10le", "prores_ks", "yuva444p10le"),
        ("bgra", "ffv1", "bgra"),
        ("yuv420p14le", "ffv1", "yuv420p14le"),
        ("yuva420p", "libx264", "yuv420p"),
    ],
)
def test_automatic_pixel_format(source, codec, wanted):
    if codec not in encoders():
        pytest.skip(f"this PyAV has no {codec}")
    formats = [pixels.name for pixels in av.Codec(codec, "w").video_formats]
    lossless, alpha = codec == "ffv1", codec in ("ffv1", "prores_ks")
    assert best_format(formats, layout_of(source), lossless, alpha) == wanted


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [
        ("libx264", ".mkv", {"preset": "ultrafast", "crf": 30}),
        ("libx265", ".mp4", {"preset": "ultrafast"}),
        ("libsvtav1", ".mp4", {"preset": "12"}),
        ("libvpx-vp9", ".webm", {"preset": "8"}),
        ("libvpx-vp9", ".mp4", {"preset": "8"}),
        ("prores_ks", ".mov", {}),
        ("ffv1", ".mkv", {}),
    ],
)
def test_encoders(tmp_path, codec, suffix, options):
    """Several segments of each; all frames, at their times, and the picture is the right one."""
    if codec not in encoders():
        pytest.skip(f"this PyAV has no {codec}")
    source = make_clip(tmp_path / "in.mp4", 14, size=(64, 48), options={"crf": "5"})
    target = tmp_path / f"out{suffix}"
    chosen = VideoOptions(codec=codec, segment_frames=5, threads=1, **options)
    summary = upscale_video(source, target, Plain(), options=chosen)
    assert summary.codec == codec
    assert times(target) == times(source)
    unit = 4 if "10" in summary.pixel_format else 1
    shown = planes(target)
    for before, after in zip(planes(source), shown, strict=True):
        error = after[0] / unit - before[0].repeat(4, 0).repeat(4, 1).astype(float)
        assert np.sqrt((error**2).mean()) < 6
    assert len(packets(target, "video")) == 14


def test_interlaced_is_said(tmp_path):
    source = make_clip(
        tmp_path / "in.mp4",
        4,
        options={"x264-params": "tff=1", "preset": "fast"},
        size=(64, 64),
    )
    with av.open(str(source)) as container:
        if not next(container.decode(video=0)).interlaced_frame:
            pytest.skip("this encoder makes no interlaced frames")
    with pytest.warns(VideoWarning, match="interlaced"):
        upscale_video(source, tmp_path / "out.mp4", Plain())


def test_a_network(tmp_path):
    """A tiny DASR of random weights; frames are those of the upscaler called by hand."""
    torch.manual_seed(0)
    model = DASR(
        MSRResNetDynamic(num_feat=8, num_block=1, num_models=3, upscale=4),
        Degradation_Predictor(nf=4, num_networks=3),
    )
    upscaler = Upscaler(model, device="cpu")
    upscaler.output_size = lambda width, height: (4 * width, 4 * height)
    source = make_clip(
        tmp_path / "in.mkv",
        3,
        codec="ffv1",
        pixel_format="bgr0",
        make=lambda number: fill(
            av.VideoFrame(*SIZE, "gbrp"),
            list(np.random.default_rng(number).integers(0, 256, (3, 24, 32), np.uint8)),
        ).reformat(format="bgr0"),
    )
    target = tmp_path / "out.mkv"
    edits = []

    def edit(v: torch.Tensor) -> torch.Tensor:
        edits.append(v)
        return v * 0.5

    options = VideoOptions(codec="ffv1", smoothing=0, pixel_format="gbrp16le")
    upscale_video(source, target, upscaler, options=options, degradation=edit)
    frames = [np.stack([p[2], p[0], p[1]]) for p in planes(source)]
    for before, after in zip(frames, planes(target), strict=True):
        image = torch.from_numpy(before).float()[None] / 255
        wanted = upscaler(image, degradation=lambda v: v * 0.5)[0].double().numpy()
        found = np.stack([after[2], after[0], after[1]])
        assert np.abs(found - wanted * 65535).max() <= 0.5 + 65535 * 1e-5
    fixed = torch.full((1, 33), 0.25)
    upscale_video(source, target, upscaler, options=options, degradation=fixed, replace=True)
    image = torch.from_numpy(frames[1]).float()[None] / 255
    wanted = upscaler(image, degradation=fixed)[0, 0].double().numpy() * 65535
    assert np.abs(planes(target)[1][2] - wanted).max() <= 0.5 + 65535 * 1e-5


def test_stills_are_enlarged_once(tmp_path):
    source = make_clip(tmp_path / "in.mkv", 12, codec="ffv1", make=flat("yuv420p", (0, 128, 128)))
    upscaler = Plain()
    options = VideoOptions(codec="ffv1", segment_frames=5)
    assert upscale_video(source, tmp_path / "out.mkv", upscaler, options=options).frames == 12
    assert len(upscaler.seen) == 3  # once in each segment


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "libnothing"}, "no encoder 'libnothing'; it has .*ffv1"),
        ({"codec": "libmp3lame"}, "no encoder 'libmp3lame'"),
        ({"crf": 52}, "crf: libx264 takes 0 to 51, got 52"),
        ({"preset": "warp"}, "preset: libx264 takes ultrafast .*, got 'warp'"),
        ({"codec": "ffv1", "crf": 1}, "crf: ffv1 has none"),
        ({"pixel_format": "yuv999p"}, "'yuv999p' is unknown"),
        ({"pixel_format": "yuv420p16le"}, "libx264 takes yuv420p"),
        ({"encoder_options": {"quux": "1"}}, "libx264 knows no quux"),
        ({"encoder_options": {"tune": "quux"}}, "libx264 refuses"),
        ({"codec": "mpeg4"}, "encoder_options"),
        ({"codec": "prores"}, "mp4 file cannot hold what prores_ks makes"),
    ],
)
def test_what_an_encoder_cannot_do_is_said_before_the_work(tmp_path, options, message):
    source = make_clip(tmp_path / "in.mp4", 3)
    upscaler = Plain()
    with warnings.catch_warnings(), pytest.raises(VideoError, match=message) as caught:
        upscale_video(source, tmp_path / "out.mp4", upscaler, options=VideoOptions(**options))
    assert "\n" not in str(caught.value)
    assert upscaler.seen == []
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]
