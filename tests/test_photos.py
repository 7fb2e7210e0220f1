"""Fetching photographs, from packages made up on the spot: no network."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import zipfile

import numpy as np
import pytest
from PIL import Image

from dasr_ops.train import photos


def picture_bytes(seed, size=(33, 20), kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


DATA = {"one": picture_bytes(1), "two": picture_bytes(2, kind="JPEG"), "three": picture_bytes(3)}


def entry(name, package="fake-wheel", path=None, split="train", shrink=2):
    return {
        "name": name,
        "split": split,
        "package": package,
        "path": path or f"fake_wheel_mod/{name}.png",
        "sha256": hashlib.sha256(DATA[name]).hexdigest(),
        "author": f"Author of {name}",
        "licence": "CC0-1.0",
        "shrink": shrink,
    }


@pytest.fixture
def packages(tmp_path):
    folder = tmp_path / "packages"
    folder.mkdir()
    with zipfile.ZipFile(folder / "fake_wheel-1.0-py3-none-any.whl", "w") as wheel:
        for name, data in DATA.items():
            wheel.writestr(f"fake_wheel_mod/{name}.png", data)
    return folder


def write_manifest(path, *pictures):
    listed = {
        "fake-wheel": {"source": "python", "version": "1.0"},
        "fake-deb": {"source": "debian", "version": "1.0-1"},
    }
    path.write_text(json.dumps({"packages": listed, "pictures": list(pictures)}))
    return path


@pytest.fixture
def manifest(tmp_path):
    return write_manifest(
        tmp_path / "list.json", entry("one"), entry("two"), entry("three", split="val", shrink=1)
    )


def test_the_list_is_sound():
    packages, listed = photos.load_manifest()
    train = [p for p in listed if p.split == "train"]
    val = [p for p in listed if p.split == "val"]
    assert len(train) >= 90 and len(val) == 12
    assert not {p.sha256 for p in train} & {p.sha256 for p in val}
    assert not {p.package for p in train} & {p.package for p in val}
    for photo in listed:
        assert re.fullmatch(r"[0-9a-f]{64}", photo.sha256)
        assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", photo.name)
        assert photo.author and photo.licence and photo.shrink >= 1
        assert not photo.path.startswith("/") and ".." not in photo.path
    assert {p.source for p in packages.values()} == {"debian", "python"}


def test_pictures_arrive_whole_shrunk_and_attributed(tmp_path, packages, manifest):
    dest = tmp_path / "out" / "photos"
    result = photos.fetch(dest, local=packages, manifest=manifest)
    assert result == {"kept": [], "written": ["one", "two", "three"], "failed": []}
    found = sorted(str(p.relative_to(dest)) for p in dest.rglob("*") if p.is_file())
    assert found == ["ATTRIBUTION.md", "train/one.png", "train/two.png", "val/three.png"]

    source = Image.open(io.BytesIO(DATA["one"])).crop((0, 0, 32, 20))
    expected = np.asarray(source.resize((16, 10), Image.Resampling.LANCZOS))
    ours = np.asarray(Image.open(dest / "train/one.png"))
    np.testing.assert_array_equal(ours, expected)
    whole = np.asarray(Image.open(dest / "val/three.png"))
    np.testing.assert_array_equal(whole, np.asarray(Image.open(io.BytesIO(DATA["three"]))))

    text = (dest / "ATTRIBUTION.md").read_text()
    for name in DATA:
        assert f"Author of {name} | CC0-1.0 | fake-wheel 1.0" in text


def test_a_second_run_keeps_what_is_whole_and_mends_the_rest(tmp_path, packages, manifest):
    dest = tmp_path / "photos"
    photos.fetch(dest, local=packages, manifest=manifest)
    untouched = (dest / "train/one.png").stat().st_mtime_ns
    cut = dest / "train/two.png"
    cut.write_bytes(cut.read_bytes()[:200])
    (dest / "val/three.png").unlink()
    result = photos.fetch(dest, local=packages, manifest=manifest)
    assert result == {"kept": ["one"], "written": ["two", "three"], "failed": []}
    assert (dest / "train/one.png").stat().st_mtime_ns == untouched
    Image.open(cut).load()

    write_manifest(manifest, entry("one", shrink=4), entry("two"))
    result = photos.fetch(dest, local=packages, manifest=manifest)
    assert result == {"kept": ["two"], "written": ["one"], "failed": []}
    assert Image.open(dest / "train/one.png").size == (8, 5)


def test_one_split_alone_keeps_the_attribution_of_the_other(tmp_path, packages, manifest):
    dest = tmp_path / "photos"
    photos.fetch(dest, local=packages, manifest=manifest, splits=["val"])
    assert not (dest / "train").exists()
    photos.fetch(dest, local=packages, manifest=manifest, splits=["train"])
    assert "Author of three" in (dest / "ATTRIBUTION.md").read_text()
    with pytest.raises(ValueError, match=r"splits: expected names among .* got \['test'\]"):
        photos.fetch(dest, splits=["test"], manifest=manifest)


def test_a_changed_or_missing_picture_fails_alone(tmp_path, packages, manifest):
    changed = entry("one") | {"sha256": "0" * 64}
    missing = entry("two", path="fake_wheel_mod/nothing.png")
    write_manifest(manifest, changed, missing, entry("three"))
    result = photos.fetch(tmp_path / "photos", local=packages, manifest=manifest)
    assert result["written"] == ["three"]
    assert "one: fake-wheel: fake_wheel_mod/one.png is another picture" in result["failed"][0]
    assert "no file fake_wheel_mod/nothing.png; version 1.0 had it" in result["failed"][1]


def test_a_package_that_cannot_be_had_is_explained(tmp_path, monkeypatch, manifest):
    write_manifest(manifest, entry("one"), entry("two", package="fake-deb", path="usr/two.jpg"))
    monkeypatch.setattr(photos.shutil, "which", lambda name: None)
    result = photos.fetch(tmp_path / "photos", manifest=manifest)
    assert result["written"] == []
    wheel, deb = result["failed"]
    assert "pip install fake-wheel" in wheel and "--packages" in wheel
    assert "apt-get is not installed" in deb and "--packages" in deb


def test_the_command_line_reports_and_returns_a_status(
    tmp_path, monkeypatch, capsys, packages, manifest
):
    monkeypatch.setattr(photos, "MANIFEST", manifest)
    command = [str(tmp_path / "photos"), "--packages", str(packages)]
    assert photos.main([*command, "--split", "val"]) == 0
    assert capsys.readouterr().out == "1 written, 0 already there, 0 failed\n"
    write_manifest(manifest, entry("one"), entry("two") | {"sha256": "0" * 64})
    assert photos.main(command) == 1
    captured = capsys.readouterr()
    assert captured.out == "1 written, 0 already there, 1 failed\n"
    assert "another picture than the one listed" in captured.err


def test_the_command_line_packs_training_pictures_alone(tmp_path, monkeypatch, capsys, packages):
    listed = write_manifest(
        tmp_path / "list.json",
        entry("one", shrink=1),
        entry("two", shrink=1),
        entry("three", split="val", shrink=1),
    )
    monkeypatch.setattr(photos, "MANIFEST", listed)
    folder = tmp_path / "pack"
    command = [str(tmp_path / "photos"), "--packages", str(packages), "--pack", str(folder)]
    assert photos.main([*command, "--patch", "16"]) == 0
    output = capsys.readouterr().out
    assert "4 of 4 patches of 16 pixels, from 2 pictures, 0.0 MB" in output
    notes = json.loads((folder / "patches.json").read_text())
    assert {patch["picture"] for patch in notes["patches"].values()} == {"one", "two"}
    assert notes["pictures"]["one"]["sha256"] == hashlib.sha256(DATA["one"]).hexdigest()
    text = (folder / "ATTRIBUTION.md").read_text()
    assert "Author of one" in text and "Author of three" not in text
    assert photos.main([*command, "--patch", "256"]) == 1
    assert "--pack: not one patch of 256 pixels" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        photos.main([*command, "--limit", "much"])
    assert "--limit: expected a number of bytes" in capsys.readouterr().err


def test_an_installed_package_is_used_without_a_download(tmp_path, monkeypatch, manifest):
    module = tmp_path / "site" / "fake_wheel_mod"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (module / "one.png").write_bytes(DATA["one"])
    monkeypatch.syspath_prepend(module.parent)
    write_manifest(manifest, entry("one"))
    monkeypatch.setattr(photos, "_run", lambda *a: pytest.fail("nothing to download"))
    assert photos.fetch(tmp_path / "photos", manifest=manifest)["written"] == ["one"]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_debian_package_is_unpacked(tmp_path, packages, manifest):
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    control = "Package: fake-deb\nVersion: 1.0-1\nArchitecture: all\n"
    control += "Maintainer: A <a@example.org>\nDescription: pictures\n"
    (tree / "DEBIAN/control").write_text(control)
    (tree / "usr").mkdir()
    (tree / "usr/two.jpg").write_bytes(DATA["two"])
    command = ["dpkg-deb", "--build", str(tree), str(packages / "fake-deb_1.0-1_all.deb")]
    subprocess.run(command, check=True, capture_output=True)
    write_manifest(manifest, entry("two", package="fake-deb", path="usr/two.jpg"))
    result = photos.fetch(tmp_path / "photos", local=packages, manifest=manifest)
    assert result == {"kept": [], "written": ["two"], "failed": []}


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, packages, manifest):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        photos.fetch(tmp_path / "photos", local=packages, manifest=manifest)
    assert not [p for p in (tmp_path / "photos").rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    "pictures",
    [
        [entry("one"), entry("one") | {"name": "other"}],
        [entry("one"), entry("two") | {"name": "one"}],
        [entry("one", split="test")],
        [entry("one", package="unknown")],
    ],
)
def test_a_faulty_list_is_refused(tmp_path, pictures):
    with pytest.raises(ValueError, match=r"list\.json"):
        photos.load_manifest(write_manifest(tmp_path / "list.json", *pictures))
