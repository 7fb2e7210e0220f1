"""Settings in files: what is written comes back, and what is wrong is named with its place."""

from __future__ import annotations

import dataclasses
import os
import sys
import types
from pathlib import Path
from typing import Literal, Union, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasr_ops.train import config_yaml
from dasr_ops.train.config import TrainConfig
from dasr_ops.train.config_files import (
    from_dict,
    load_config,
    save_config,
    to_dict,
    to_yaml,
)
from dasr_ops.train.config_rules import ConfigError
from dasr_ops.train.config_values import convert, hints

yaml = pytest.importorskip("yaml", reason="settings in files need PyYAML")


def _write(folder: Path, text: str, name: str = "mine.yml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def _load(folder: Path, text: str) -> TrainConfig:
    return load_config(_write(folder, text))


def _error(folder: Path, text: str) -> str:
    path = _write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path), "FILE")


def test_values_of_every_type(tmp_path):
    config = _load(
        tmp_path,
        """
        run: somewhere/else
        seed: 7
        network: {kind: srresnet, upscale: 2}
        start: {weights: [a.pth], discriminator: ~}
        data:
          train: [one, two/three.lmdb]
          root: lists
          flip: no
        loss:
          perceptual: {layers: {conv1_2: 1, conv5_4: 0.5}, weights: None}
          regression: {weight: 0, entries: []}
        optimizer: {lr: 1e-4, weight_decay: 1, betas: [0, .999], options: {eps: 1e-8}}
        schedule: {milestones: [10, 20]}
        """,
    )
    expected = TrainConfig()
    expected.run, expected.seed = Path("somewhere/else"), 7
    expected.network.kind, expected.network.upscale = "srresnet", 2
    expected.start.weights = (Path("a.pth"),)
    expected.data.train = (Path("one"), Path("two/three.lmdb"))
    expected.data.root, expected.data.flip = Path("lists"), False
    expected.loss.perceptual.layers = {"conv1_2": 1.0, "conv5_4": 0.5}
    expected.loss.regression.weight = 0.0
    expected.optimizer.weight_decay, expected.optimizer.betas = 1.0, (0.0, 0.999)
    expected.optimizer.options = {"eps": 1e-8}
    expected.schedule.milestones = (10, 20)
    assert config == expected
    assert type(config.optimizer.weight_decay) is float
    assert type(config.optimizer.lr) is float  # "1e-4" is text in YAML 1.1


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "loss:\n  # gan:\n", "data: ~\n"])
def test_empty_files_and_sections(tmp_path, text):
    assert _load(tmp_path, text) == TrainConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\ndata:\n  batchsize: 3", "FILE:3: unknown setting data.batchsize; did you mean "
         "data.batch_size?"),
        ("batch_size: 3", "FILE:1: unknown setting batch_size; did you mean data.batch_size?"),
        ("usm: true", "FILE:1: unknown setting usm; did you mean loss.pixel.usm or "
         "loss.perceptual.usm or loss.gan.usm?"),
        ("bases: x", "FILE:1: unknown setting bases; did you mean base?"),
        ("loss: {gan: {preset: small}}", "FILE:1: unknown setting loss.gan.preset; known here: "
         "weight, kind, relativistic, usm, start"),
        ("data.batch_size: 3", "FILE:1: unknown setting data.batch_size; write one name to a line: "
         "data:, and indented below it batch_size:"),
        ("data:\n  patch-size: 3", "FILE:2: unknown setting data.patch-size; did you mean "
         "data.patch_size?"),
        ("on: 1", "FILE:1: True: expected the name of a setting, got True (true or false)"),
        ("seed: '6'", "FILE:1: seed: expected a whole number, got '6' (text); write 6"),
        ("seed: 6.5", "FILE:1: seed: expected a whole number, got 6.5 (a number)"),
        ("seed: yes", "FILE:1: seed: expected a whole number, got True (true or false)"),
        ("seed:", "FILE:1: seed: expected a whole number, got nothing"),
        ("schedule:\n  iterations: 5e5", "FILE:2: schedule.iterations: expected a whole number, "
         "got '5e5' (text); write 500000"),
        ("optimizer: {lr: true}", "FILE:1: optimizer.lr: expected a number, got True (true or "
         "false)"),
        ("optimizer: {lr: 1e-4x}", "FILE:1: optimizer.lr: expected a number, got '1e-4x' (text)"),
        ("data: {flip: 1}", "FILE:1: data.flip: expected true or false, got 1 (a whole number)"),
        ("data: {train: photos}", "FILE:1: data.train: expected a list, got 'photos' (text); write "
         "[photos]"),
        ("data: {train: [a, 3]}", "FILE:1: data.train[1]: expected a path, got 3 (a whole number); "
         "in quotes it is text"),
        ("data: {root: ''}", "FILE:1: data.root: expected a path, got '' (text)"),
        ("run: 2024-01-01", "FILE:1: run: expected a path, got datetime.date(2024, 1, 1) (date)"),
        ("optimizer: {betas: [1]}", "FILE:1: optimizer.betas: expected a list of 2, got [1] (a "
         "list)"),
        ("optimizer: {options: {eps: x}}", "FILE:1: optimizer.options[eps]: expected a number, got "
         "'x' (text)"),
        ("optimizer: {options: [1]}", "FILE:1: optimizer.options: expected 'name: value' lines, or "
         "{} for none, got [1] (a list)"),
        ("optimizer: {name: no}", "FILE:1: optimizer.name: expected text, got False (true or "
         "false); in quotes it is text"),
        ("loss: {gan: {kind: vanila}}", "FILE:1: loss.gan.kind: expected one of vanilla, lsgan, "
         "hinge, wgan_softplus, got 'vanila' (text); did you mean vanilla?"),
        ("loss: 3", "FILE:1: loss: expected 'name: value' lines, got 3 (a whole number)"),
        ("loss:\n- 3", "FILE:1: loss: expected 'name: value' lines, got [3] (a list)"),
        ("run: a\n\ndata:\n  patch_size: 30", "FILE:4: data.patch_size: expected a multiple of 4, "
         "got 30"),
        ("loss:\n  gan:\n    weight: -1", "FILE:3: loss.gan.weight: expected 0 or more, got -1.0"),
        ("optimizer: {lr: .nan}", "FILE:1: optimizer.lr: expected 0 or more, got nan"),
        ("seed: 1\nrun: a\nseed: 2", "FILE:3: seed was set before, in line 1"),
        ("data: {flip: true, flip: true}", "FILE:1: flip was set before, in line 1"),
        ("seed: [1", "FILE:1: expected ',' or ']', but got '<stream end>'"),
        ("- 1\n- 2", "FILE: expected settings as 'name: value', got [1, 2]"),
        ("seed: 1\n---\nseed: 2", "FILE:2: but found another document"),
        ("run: !!python/object/apply:os.getcwd []", "FILE:1: could not determine a constructor for "
         "the tag 'tag:yaml.org,2002:python/object/apply:os.getcwd'"),
        ("seed: *other", "FILE:1: found undefined alias 'other'"),
        ("loss: &loss {gan: *loss}", "FILE:1: unknown setting loss.gan.gan; known here"),
        ("run: 2024-13-45", "FILE: month must be in 1..12"),
        ("seed: " + "9" * 5000, "FILE: Exceeds the limit"),
        ("run: " + "[" * 5000, "FILE"),
        ("preset: smal", "FILE:1: preset: no preset named 'smal'; did you mean small? (presets: "),
        ("preset: [small]", "FILE:1: preset: expected a name, got ['small'] (a list)"),
        ("preset: small\nbase: other.yml", "FILE:2: base: expected either preset or base"),
        ("seed: 0\nbase: other.yml", "FILE:2: base: expected a file, found none at "),
        ("base: mine.yml", "FILE:1: base: mine.yml starts from this file itself"),
    ],
)  # fmt: skip
def test_errors_name_place_field_and_value(tmp_path, text, message):
    if text.startswith("seed: 999") and not hasattr(sys, "get_int_max_str_digits"):
        message = "FILE:1: seed: expected"  # before Python 3.10.7
    assert _error(tmp_path, text).startswith(message)


def test_plain_mappings_have_no_place():
    with pytest.raises(ConfigError, match=r"^unknown setting data\.trian; did you mean"):
        from_dict({"data": {"trian": []}})
    with pytest.raises(ConfigError, match=r"^seed: expected 0 to 2\^63 - 1, got -1$"):
        from_dict({"seed": -1})


def test_from_dict_changes_neither_argument():
    default = TrainConfig()
    default.optimizer.options = {"eps": 1e-6}
    mapping = {"optimizer": {"options": {"eps": 1}}, "loss": {"gan": {"weight": 0}}}
    config = from_dict(mapping, default)
    assert config.optimizer.options == {"eps": 1.0}
    assert config.loss.gan.weight == 0
    assert default.optimizer.options == {"eps": 1e-6}
    assert default.loss.gan.weight == 0.1
    config.data.batch_size = 99
    assert default.data.batch_size == 6
    assert mapping == {"optimizer": {"options": {"eps": 1}}, "loss": {"gan": {"weight": 0}}}


def test_base_is_relative_to_the_file_and_merged_field_by_field(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    _write(tmp_path, "preset: small\nrun: first\noptimizer: {options: {eps: 1e-6}}", "a.yml")
    _write(tmp_path, "base: deep/../a.yml\ndata: {batch_size: 2, train: [x, y]}", "b.yml")
    text = "base: ../b.yml\ndata: {train: [z]}\noptimizer: {options: {foreach: 0}}"
    path = _write(tmp_path / "deep", text, "c.yml")
    expected = load_config("small")
    expected.run = Path("first")
    expected.data.batch_size, expected.data.train = 2, (Path("z"),)
    expected.optimizer.options = {"foreach": 0.0}  # mappings and lists are replaced
    assert load_config(path) == expected
    monkeypatch.chdir(tmp_path)
    assert load_config("deep/c.yml") == expected
    _write(tmp_path, "base: deep/c.yml", "a.yml")
    with pytest.raises(ConfigError, match="starts from this file itself"):
        load_config(path)


def test_error_in_a_base_names_that_file(tmp_path):
    other = _write(tmp_path, "\nseed: x", "other.yml")
    assert _error(tmp_path, "base: other.yml").startswith(f"{other}:2: seed: ")


def test_anchors_and_merge_keys(tmp_path):
    text = """
    loss:
      pixel: &part {weight: 0.5, usm: false}
      perceptual:
        <<: *part
        usm: true
    """
    loss = _load(tmp_path, text).loss
    assert (loss.pixel.weight, loss.pixel.usm) == (0.5, False)
    assert (loss.perceptual.weight, loss.perceptual.usm) == (0.5, True)


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert _load(tmp_path, "data: {train: [~/photos]}").data.train == (tmp_path / "photos",)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings(tmp_path, encoding):
    path = tmp_path / "mine.yml"
    path.write_bytes("run: Gemälde/日本\r\nseed: 3\r\n".encode(encoding))
    assert load_config(path).run == Path("Gemälde/日本")
    assert load_config(path).seed == 3


def test_unreadable_files(tmp_path):
    path = tmp_path / "mine.yml"
    path.write_bytes(b"run: \xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"mine\.yml: .*utf-?8|mine\.yml: "):
        load_config(path)
    path.write_bytes(b"run: a\0b")
    with pytest.raises(ConfigError, match=r"mine\.yml: "):
        load_config(path)
    for source in ("nothing.yml", "a\0b", "a" * 5000, tmp_path / "nothing" / "there"):
        with pytest.raises(ConfigError, match="no preset and no file named"):
            load_config(source)
    with pytest.raises(ConfigError, match=r"expected the folder of a run, with config\.yml in it"):
        load_config(tmp_path)


# --- round trip ---

_NUMBERS = st.floats(0, 1e30, allow_nan=False) | st.integers(0, 10**12).map(float)
_TEXT = st.text(st.characters(exclude_characters="\0"), max_size=12)
_PATHS = st.one_of(
    st.sampled_from(
        ["~/a", "None", "null", "1e-4", "yes", "a: b", "#x", "-", "\udcff", " a ", "~"]
    ),
    _TEXT,
).map(Path)


def _values(kind) -> st.SearchStrategy:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return st.none() | _values(arguments[0])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(_values(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(_values, arguments))
    if origin is dict:
        return st.dictionaries(_TEXT, _values(arguments[1]), max_size=3)
    if dataclasses.is_dataclass(kind):
        parts = {name: _values(part) for name, part in hints(kind).items()}
        return st.fixed_dictionaries(parts).map(lambda values: _unchecked(kind, values))
    integers = st.integers(0, 2**40)
    return {bool: st.booleans(), int: integers, float: _NUMBERS, str: _TEXT, Path: _PATHS}[kind]


def _unchecked(kind: type, values: dict) -> object:
    instance = object.__new__(kind)
    vars(instance).update(values)
    return instance


@settings(max_examples=25, deadline=None)
@given(_values(TrainConfig))
def test_yaml_round_trip(config):
    """Every value of every type, whether it makes sense or not, survives the file."""
    text = to_yaml(config)
    plain = to_dict(config)
    assert yaml.safe_load(text) == plain  # an independent reader

    def back(kind, mapping):
        return {
            name: back(part, mapping[name])
            if dataclasses.is_dataclass(part)
            else convert(part, mapping[name])
            for name, part in hints(kind).items()
        }

    read = config_yaml.parse_yaml(text.encode("utf-8"), "x")
    assert back(TrainConfig, read) == dataclasses.asdict(config)


def test_save_and_load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config("paper")
    config.data.train = (Path("~strange"), Path("Gemälde"))
    config.optimizer.options = {"eps": 1e-12}
    config.optimizer.lr = 0.1 + 0.2
    save_config(config, "all.yml")
    assert load_config("all.yml") == config
    assert os.listdir(tmp_path) == ["all.yml"]
    assert yaml.safe_load(Path("all.yml").read_text(encoding="utf-8")) == to_dict(config)


def test_save_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "all.yml"
    save_config(TrainConfig(seed=1), path)

    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        save_config(TrainConfig(seed=2), path)
    assert load_config(path).seed == 1
    assert os.listdir(tmp_path) == ["all.yml"]


# --- the folder of a run ---


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    (tmp_path / "project" / "runs" / "a").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    save_config(TrainConfig(run=Path("runs/a"), seed=5), "runs/a/config.yml")
    return tmp_path / "project" / "runs" / "a"


def test_folder_of_a_run(run, monkeypatch):
    assert load_config("runs/a").run == Path("runs/a")
    assert load_config(run).run == run
    moved = run.rename(run.with_name("b"))
    assert load_config("runs/b") == TrainConfig(run=Path("runs/b"), seed=5)
    monkeypatch.chdir(moved)
    assert load_config(".").seed == 5


def test_config_of_a_run_from_another_working_directory(run, monkeypatch, tmp_path):
    assert load_config("runs/a/config.yml").run == Path("runs/a")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_config(run / "config.yml").run.resolve() == run.resolve()
    assert load_config("../project/runs/a/config.yml").run.resolve() == run.resolve()
    # A copy that only happens to have this name stays what it says.
    copy = tmp_path / "elsewhere" / "config.yml"
    copy.write_bytes((run / "config.yml").read_bytes())
    assert load_config(copy).run == Path("runs/a")


def test_without_pyyaml(monkeypatch, tmp_path):
    path = _write(tmp_path, "seed: 1")
    config_yaml._classes.cache_clear()
    monkeypatch.setitem(sys.modules, "yaml", None)
    for call in (lambda: load_config(path), lambda: to_yaml(TrainConfig())):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'dasr-ops\[train\]'"):
            call()
