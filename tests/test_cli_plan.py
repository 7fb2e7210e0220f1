"""What goes where, and what is refused before any work starts."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from dasr_ops.cli import UsageError
from dasr_ops.cli.plan import Kind, plan


def _touch(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def _names(jobs, root: Path) -> dict[str, str]:
    return {str(s.relative_to(root)): str(t.relative_to(root)) for s, t, *_ in jobs}


def test_trees_are_mirrored(tmp_path):
    _touch(tmp_path, "in/a.png", "in/b/c.JPG", "in/b/d/e.gif", "in/notes.txt", "in/.hidden.png")
    _touch(tmp_path, "in/.cache/x.png", "in/results/old.png")
    jobs, failures = plan([tmp_path / "in"], tmp_path / "in" / "results", suffix="_x4")
    assert failures == []
    assert _names(jobs, tmp_path) == {
        "in/a.png": "in/results/a_x4.png",
        "in/b/c.JPG": "in/results/b/c_x4.JPG",
        "in/b/d/e.gif": "in/results/b/d/e_x4.png",
    }


def _animation(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


def test_kinds(tmp_path):
    _touch(tmp_path, "in/a.png", "in/b.MP4", "in/c.avi", "in/d.ts")
    for name in ("e.gif", "f.webp", "g.png"):
        _animation(tmp_path / "in" / name)
    jobs, _ = plan([tmp_path / "in"], tmp_path / "out")
    assert {job.target.name: job.kind for job in jobs} == {
        "a.png": Kind.PICTURE,
        "b.mp4": Kind.VIDEO,
        "c.mkv": Kind.VIDEO,
        "e.gif": Kind.ANIMATION,
        "f.webp": Kind.ANIMATION,
        "g.png": Kind.ANIMATION,
    }
    jobs, _ = plan([tmp_path / "in"], tmp_path / "out", stills=True, format="png")
    assert {job.target.name for job in jobs} == {"a.png", "e.png", "f.png", "g.png"}
    assert all(job.kind is Kind.PICTURE for job in jobs)
    jobs, _ = plan([tmp_path / "in"], tmp_path / "out", format="jpg")
    kinds = {job.target.name: job.kind for job in jobs}
    assert kinds["e.jpg"] is kinds["a.jpg"] is Kind.PICTURE
    assert kinds["b.mp4"] is Kind.VIDEO
    (job,) = plan([tmp_path / "in" / "d.ts"], tmp_path / "out")[0]
    assert job == (tmp_path / "in" / "d.ts", tmp_path / "out" / "d.mkv", Kind.VIDEO)


def test_names_that_do_not_fit_what_is_in_the_file(tmp_path):
    a, video = _touch(tmp_path, "a.png", "b.mp4")
    gif = _animation(tmp_path / "c.gif")
    assert plan([gif], tmp_path / "d.webp")[0][0].kind is Kind.ANIMATION
    assert plan([gif], tmp_path / "d.jpg")[0][0].kind is Kind.PICTURE
    assert plan([video], tmp_path / "d.mkv")[0][0].kind is Kind.VIDEO
    with pytest.raises(UsageError, match=r"b.mp4 is a video, which such a file does not hold"):
        plan([video], tmp_path / "d.png")
    with pytest.raises(UsageError, match=r"a.png is a picture, which such a file does not hold"):
        plan([a], tmp_path / "d.mp4")
    with pytest.raises(UsageError, match=r"a.png has one frame, and .gif is for animations"):
        plan([a], tmp_path / "d.gif")


def test_patterns_are_expanded_where_no_file_has_that_name(tmp_path):
    a, _, c = _touch(tmp_path, "x/a.png", "x/b.txt", "x/y/c.png")
    (d,) = _touch(tmp_path, "x[1].png")
    jobs, failures = plan([tmp_path / "x/**/*", d, tmp_path / "q*"], tmp_path / "out")
    assert failures == [(tmp_path / "q*", "no pictures or videos match")]
    assert _names(jobs, tmp_path) == {
        "x/a.png": "out/a.png",
        "x/y/c.png": "out/y/c.png",
        "x[1].png": "out/x[1].png",
    }
    assert [job.source for job in jobs] == [a, c, d]
    (job,) = plan([tmp_path / "x" / "[ab].png"], tmp_path / "one.png")[0]
    assert (job.source, job.target) == (a, tmp_path / "one.png")
    with pytest.raises(UsageError, match="a file name fits a single input file only"):
        plan([tmp_path / "x/**/*.png"], tmp_path / "one.png")


def test_a_pattern_leaves_its_results_out(tmp_path):
    a, _ = _touch(tmp_path, "in/a.png", "in/out/a.png")
    jobs, _ = plan([tmp_path / "in/**/*.png"], tmp_path / "in" / "out")
    assert [job.source for job in jobs] == [a]


def test_links_and_strange_files(tmp_path):
    a, b = _touch(tmp_path, "in/a.png", "elsewhere/b.png")
    (tmp_path / "in" / "link.png").symlink_to(b)
    (tmp_path / "in" / "dead.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "in" / "loop.png").symlink_to(tmp_path / "in" / "loop.png")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "elsewhere")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "in" / "pipe.png")
    jobs, failures = plan([tmp_path / "in"], tmp_path / "out")
    assert [job.source.name for job in jobs] == ["a.png", "link.png"]
    assert sorted((path.name, reason) for path, reason in failures) == [
        ("dead.png", "a link to nothing"),
        ("loop.png", "a link to nothing"),
    ]
    assert jobs[0].source == a


def test_what_cannot_be_looked_at_is_a_failure(tmp_path, monkeypatch):
    (a,) = _touch(tmp_path, "in/a.png")
    long = tmp_path / ("x" * 300 + ".png")
    jobs, failures = plan([long, a], tmp_path / "out")
    assert [job.source for job in jobs] == [a]
    assert [reason for _, reason in failures] == [os.strerror(errno.ENAMETOOLONG)]
    jobs, _ = plan([a], tmp_path / "out", suffix="y" * 300)  # fails when it is written
    assert len(jobs) == 1

    def walk(folder, onerror):
        onerror(PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "in" / "b")))
        yield str(folder), [], ["a.png"]

    monkeypatch.setattr(os, "walk", walk)
    jobs, failures = plan([tmp_path / "in"], tmp_path / "out")
    assert [job.source for job in jobs] == [a]
    assert failures == [(tmp_path / "in" / "b", "Permission denied")]


def test_a_file_named_twice_is_one_job(tmp_path):
    (a,) = _touch(tmp_path, "in/a.png")
    jobs, failures = plan([tmp_path / "in", a, tmp_path / "in" / ".." / "in" / "a.png"], tmp_path)
    assert len(jobs) == 1
    assert failures == []


def test_format_and_files(tmp_path):
    a, b = _touch(tmp_path, "a.jpeg", "x/b.dat")
    jobs, _ = plan([a, b], tmp_path / "out", format="webp")
    assert _names(jobs, tmp_path) == {"a.jpeg": "out/a.webp", "x/b.dat": "out/b.webp"}
    jobs, _ = plan([a, a], tmp_path / "out")
    assert _names(jobs, tmp_path) == {"a.jpeg": "out/a.jpeg"}


def test_one_file_to_a_name_or_a_folder(tmp_path):
    (a,) = _touch(tmp_path, "a.jpg")
    assert _names(plan([a], tmp_path / "b.PNG")[0], tmp_path) == {"a.jpg": "b.PNG"}
    assert _names(plan([a], tmp_path / "b.d")[0], tmp_path) == {"a.jpg": "b.d/a.jpg"}
    (tmp_path / "c.png").mkdir()
    assert _names(plan([a], tmp_path / "c.png")[0], tmp_path) == {"a.jpg": "c.png/a.jpg"}
    assert _names(plan([a], tmp_path / "b.tif", format="tiff")[0], tmp_path) == {"a.jpg": "b.tif"}


def test_inputs_without_pictures(tmp_path):
    (tmp_path / "empty").mkdir()
    missing = tmp_path / "missing.png"
    jobs, failures = plan([tmp_path / "empty", missing], tmp_path / "out")
    assert jobs == []
    assert [(path.name, reason) for path, reason in failures] == [
        ("empty", "no pictures or videos in this folder"),
        ("missing.png", "no such file or folder"),
    ]
    assert plan([missing], tmp_path / "out.png") == ([], [(missing, "no such file or folder")])


def test_collisions_are_refused(tmp_path):
    a, b = _touch(tmp_path, "x/a.png", "y/a.png")
    with pytest.raises(UsageError, match=r"x/a.png and .*y/a.png would both be written to"):
        plan([a, b], tmp_path / "out")
    _touch(tmp_path, "in/p.png", "in/p.gif")
    with pytest.raises(UsageError, match="would both be written to"):
        plan([tmp_path / "in"], tmp_path / "out")
    (tmp_path / "out2").mkdir()
    os.symlink(tmp_path / "out2", tmp_path / "link")
    jobs, _ = plan([tmp_path / "x"], tmp_path / "link")
    assert jobs[0].target == tmp_path / "link" / "a.png"


def test_results_beside_their_inputs(tmp_path):
    _touch(tmp_path, "in/a.png", "in/b.jpg", "in/a_x4.png", "in/b_x4.jpg", "in/c.webp")
    for inputs in ([tmp_path / "in"], [tmp_path / "in" / "*"], sorted((tmp_path / "in").iterdir())):
        with pytest.raises(UsageError, match="which is an input"):
            plan(inputs, tmp_path / "in", suffix="_x4")
        results = []
        jobs, _ = plan(inputs, tmp_path / "in", suffix="_x4", results=results)
        assert sorted(path.name for path in results) == ["a_x4.png", "b_x4.jpg"]
        assert _names(jobs, tmp_path) == {
            "in/a.png": "in/a_x4.png",
            "in/b.jpg": "in/b_x4.jpg",
            "in/c.webp": "in/c_x4.webp",
        }
    _touch(tmp_path, "in2/a.png", "in2/a.webp")  # of which nobody can tell
    for results in (None, []):
        with pytest.raises(UsageError, match="which is an input"):
            plan([tmp_path / "in2"], tmp_path / "in2", format="webp", results=results)


@pytest.mark.skipif(sys.platform == "win32", reason="links and lengths of POSIX")
def test_paths_that_lead_nowhere(tmp_path):
    (a,) = _touch(tmp_path, "a.png")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").symlink_to("a.png")
    for output in (tmp_path / "loop", tmp_path / "loop" / "b.png", tmp_path / "out"):
        jobs, failures = plan([a], output)
        assert len(jobs) == 1 and not failures
    jobs, failures = plan([tmp_path], tmp_path / "loop")
    assert [job.source for job in jobs] == [a] and len(failures) == 1  # a link in a circle
    long = tmp_path / ("a" * 300 + ".png")
    for inputs, output in (([long], tmp_path / "out"), ([long], tmp_path / "b.png")):
        _, failures = plan(inputs, output)
        assert [path for path, _ in failures] == [long]
    jobs, failures = plan([a], long)
    assert len(jobs) == 1 and not failures


def test_inputs_are_never_targets(tmp_path):
    (a,) = _touch(tmp_path, "in/a.png")
    with pytest.raises(UsageError, match="which is an input"):
        plan([a], tmp_path / "in")
    with pytest.raises(UsageError, match="which is an input"):
        plan([a], tmp_path / "in" / ".." / "in" / "a.png")
    (tmp_path / "out").mkdir()
    os.link(a, tmp_path / "out" / "a.png")  # the same file by another name
    with pytest.raises(UsageError, match="which is an input"):
        plan([tmp_path / "in"], tmp_path / "out")
    jobs, _ = plan([tmp_path / "in"], tmp_path / "in", suffix="_x4")
    assert _names(jobs, tmp_path) == {"in/a.png": "in/a_x4.png"}


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("new.png", {}, "a file name fits a single input file only"),
        ("a.png", {}, "expected a folder, but it is a file"),
        ("out", {"suffix": "x/y"}, "--suffix: expected part of a file name"),
    ],
)
def test_outputs_that_do_not_fit(tmp_path, output, options, message):
    inputs = _touch(tmp_path, "a.png", "b.png")
    with pytest.raises(UsageError, match=message):
        plan(inputs, tmp_path / output, **options)


def test_options_that_contradict_a_name(tmp_path):
    (a,) = _touch(tmp_path, "a.png")
    with pytest.raises(UsageError, match="--format jpg contradicts the name"):
        plan([a], tmp_path / "b.png", format="jpg")
    with pytest.raises(UsageError, match="--suffix _x4 has no use"):
        plan([a], tmp_path / "b.png", suffix="_x4")
