"""LMDB databases: made, read, and refused."""

import io
import multiprocessing
import os
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from dasr_ops.train.data import lmdb as maker
from dasr_ops.train.data import open_source, read_rgb

from .data_tools import damage, make_folder, pixels, save

lmdb = pytest.importorskip("lmdb")


def make(pictures, output, **options):
    return maker.make_database(maker.Config(pictures, output, workers=0, **options))


def as_basicsr_reads(folder):
    """Follow BasicSR's description: keys are what stands before the first dot of each line."""
    with (
        lmdb.open(str(folder), readonly=True, lock=False, readahead=False) as environment,
        environment.begin() as transaction,
    ):
        lines = (folder / "meta_info.txt").read_text().splitlines()
        return {
            line: np.asarray(
                Image.open(io.BytesIO(transaction.get(line.split(".")[0].encode()))).convert("RGB")
            )
            for line in lines
        }


@pytest.fixture
def folder(tmp_path):
    root = make_folder(tmp_path / "pictures", 2)
    save(root / "sub" / "a.b.bmp", pixels(5, 20, 30))
    save(root / "grey.png", pixels(6, 20, 30)[..., 0])
    Image.fromarray(pixels(7, 20, 30)).save(root / "same.png")
    Image.fromarray(pixels(8, 20, 30)).save(root / "same.webp", lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(9, 20, 30)).save(root / "turned.png", exif=exif)
    return root


@pytest.mark.parametrize("map_size", [2**30, 2**14])
def test_a_database_holds_what_the_folder_does(tmp_path, folder, monkeypatch, map_size):
    monkeypatch.setattr(maker, "_MAP_SIZE", map_size)
    monkeypatch.setattr(maker, "_TRANSACTION", 5000)
    output = tmp_path / "out" / "set.lmdb"
    cut = save(folder / "cut.png", pixels(0))
    damage(cut)
    report = make(folder, output)
    assert report.written == 7 and list(report.skipped) == [cut]
    assert "truncated" in report.skipped[cut]

    grey = np.repeat(pixels(6, 20, 30)[..., :1], 3, axis=2)
    wanted = {
        "00.png (40,50,3) 1": pixels(0),
        "01.png (40,50,3) 1": pixels(1),
        "grey.png (20,30,1) 1": grey,
        "same.png (20,30,3) 1": pixels(7, 20, 30),
        "same_2.png (20,30,3) 1": pixels(8, 20, 30),
        "sub/a_b.png (20,30,3) 1": pixels(5, 20, 30),
        "turned.png (30,20,3) 1": np.rot90(pixels(9, 20, 30), -1),
    }
    stored = as_basicsr_reads(output)
    assert list(stored) == list(wanted)
    for line, picture in wanted.items():
        np.testing.assert_array_equal(stored[line], picture, err_msg=line)

    source = open_source(output)
    assert [source.path(i) for i in range(len(source))] == [
        output / line.split(" ")[0] for line in wanted
    ]
    for index, picture in enumerate(wanted.values()):
        np.testing.assert_array_equal(read_rgb(source.open(index)), picture)
    assert sorted(os.listdir(output.parent)) == ["set.lmdb"]


def test_names_that_lists_cannot_hold(tmp_path):
    names = ["#1.png", " lead.png", "_lead.png", "in side .png", "sub/#2.png", "line\nend.png"]
    for number, name in enumerate(names):
        save(tmp_path / "odd" / name, pixels(number))
    assert make(tmp_path / "odd", tmp_path / "set.lmdb").written == len(names)
    assert len(as_basicsr_reads(tmp_path / "set.lmdb")) == len(names)
    source = open_source(tmp_path / "set.lmdb")
    found = {read_rgb(source.open(index)).tobytes() for index in range(len(source))}
    assert found == {pixels(number).tobytes() for number in range(len(names))}


def test_png_files_are_taken_as_they_are(tmp_path, folder):
    make(folder, tmp_path / "set.lmdb")
    source = open_source(tmp_path / "set.lmdb")
    assert source.open(0).getvalue() == (folder / "00.png").read_bytes()
    assert source.open(6).getvalue() != (folder / "turned.png").read_bytes()


def test_processes_change_nothing(tmp_path, folder):
    make(folder, tmp_path / "one.lmdb")
    maker.make_database(maker.Config(folder, tmp_path / "two.lmdb", workers=2))
    one, two = as_basicsr_reads(tmp_path / "one.lmdb"), as_basicsr_reads(tmp_path / "two.lmdb")
    assert list(one) == list(two)
    assert all(np.array_equal(one[line], two[line]) for line in one)


def test_nothing_is_left_when_it_fails(tmp_path, folder, monkeypatch):
    output = tmp_path / "set.lmdb"

    def full(*args):
        raise lmdb.DiskError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"set\.lmdb: .*No space"):
        patch.setattr(maker, "_put", full)
        make(folder, output)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "fsync", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        make(folder, output)
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.png").write_text("nothing")
    with pytest.raises(ValueError, match=r"none of 1 can be read; the first, .*a\.png: not a pic"):
        make(bad, output)
    assert sorted(os.listdir(tmp_path)) == ["bad", "pictures"]
    output.mkdir()
    with pytest.raises(FileExistsError, match=r"set\.lmdb exists"):
        make(folder, output)


def test_the_command_line(tmp_path, folder, capsys):
    output = tmp_path / "set.lmdb"
    command = [str(folder), str(output), "--workers", "0"]
    assert maker.main(command) == 0
    assert capsys.readouterr().out == f"{output}: 7 pictures, 0 skipped\n"
    assert maker.main(command) == 1
    assert "set.lmdb exists" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        maker.main([str(folder), str(tmp_path / "set"), "--workers", "0"])
    assert stopped.value.code == 2
    assert "output: expected a name that ends in .lmdb" in capsys.readouterr().err


def test_without_a_list_all_keys_are_pictures(tmp_path, folder):
    make(folder, tmp_path / "set.lmdb")
    (tmp_path / "set.lmdb" / "meta_info.txt").unlink()
    (tmp_path / "set.lmdb").rename(tmp_path / "renamed")
    source = open_source(tmp_path / "renamed")
    assert len(source) == 7
    np.testing.assert_array_equal(read_rgb(source.open(1)), pixels(1))


def test_a_key_that_is_missing_is_an_oserror(tmp_path, folder):
    make(folder, tmp_path / "set.lmdb")
    with (tmp_path / "set.lmdb" / "meta_info.txt").open("a") as file:
        file.write("gone.png (20,30,3) 1\n")
    source = open_source(tmp_path / "set.lmdb")
    assert len(source) == 8
    with pytest.raises(OSError, match="the database has no key 'gone'"):
        source.open(7)


def test_what_is_no_database_is_refused(tmp_path):
    root = tmp_path / "set.lmdb"
    root.mkdir()
    with pytest.raises(ValueError, match=r"data: .*set\.lmdb, which holds no data\.mdb"):
        open_source(root, name="data")
    (root / "data.mdb").write_bytes(b"junk" * 5000)
    with pytest.raises(ValueError, match=r"set\.lmdb cannot be read as LMDB database: .*INVALID"):
        open_source(root)
    (root / "data.mdb").unlink()
    lmdb.open(str(root)).close()
    with pytest.raises(ValueError, match=r"got an empty .*set\.lmdb"):
        open_source(root)


def test_the_missing_package_is_named(tmp_path, folder, monkeypatch):
    make(folder, tmp_path / "set.lmdb")
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ImportError, match=r"pip install 'dasr-ops\[train\]'"):
        open_source(tmp_path / "set.lmdb")


def _sum(source, queue):
    queue.put(int(read_rgb(source.open(0)).sum()))


def test_each_process_opens_it_for_itself(tmp_path, folder):
    make(folder, tmp_path / "set.lmdb")
    first, second = open_source(tmp_path / "set.lmdb"), open_source(tmp_path / "set.lmdb")
    total = int(pixels(0).sum(dtype=np.int64))
    assert read_rgb(first.open(0)).sum() == read_rgb(second.open(0)).sum() == total
    copy = pickle.loads(pickle.dumps(first))
    assert read_rgb(copy.open(0)).sum() == total
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_sum, args=(first, queue)) for _ in range(2)]
    for child in children:
        child.start()
    assert [queue.get(timeout=30) for _ in children] == [total, total]
    for child in children:
        child.join()
    assert read_rgb(first.open(0)).sum() == total
