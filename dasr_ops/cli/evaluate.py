"""``dasr eval``: how close networks, or pictures restored before, come to the ground truth."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import EXIT_FAILURE, UsageError
from ._eval_options import Eval, mix_of, parse
from ._output import print_names
from ._weights import default, find, load_networks

if TYPE_CHECKING:
    from dasr_ops.train.evaluate import Evaluation, Journal, Networks, Report
    from dasr_ops.train.watch.samples import SampleSet
    from dasr_ops.train.watch.scores import Scores


def main(argv: Sequence[str]) -> int:
    """Run ``dasr eval`` with the arguments ``argv`` and return its exit code."""
    options = parse(argv)
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
    print_names(f"{report.heading()}, border {settings['border']}\n\n{report.markdown().rstrip()}")
    if evaluation.vector is not None and len(evaluation.vector):
        print_names(f"\n{evaluation.vector.summary()}")
    written = options.output is None or _write(report, run.keywords["journal"], options)
    return EXIT_FAILURE if evaluation.failed or not written else 0


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
    mix = mix_of(options.mix)
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

    restoring = {}
    if options.methods:
        mean = None
        if "mean-v" in options.methods:
            mean = _mean_vector(samples.levels, mix, scheme)
        restoring = network_methods(options.methods, networks, scale, mean)
    methods, files = {}, samples.files()
    for folder, label in zip(options.sr, _folder_names(options.sr, restoring), strict=True):
        paths = find_pictures(folder, options.suffix)
        files += paths.values()
        match(paths, samples.paths, folder, options.gt)
        methods[label] = folder_method(paths)
    methods |= restoring
    vector = predict = None
    if options.vector:
        vector = VectorErrors(*mix_constants(mix, scheme))
        (upscaler,) = networks.upscalers().values()

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
    for network in networks.dasr.values():
        count = network.net_p.config["num_params"]
        if count != NUM_LABELS:
            raise UsageError(f"--weights: expected {NUM_LABELS} entries of v, got {count}")
    scheme, *others = sorted({network.label_scheme for network in networks.dasr.values()})
    if others:
        raise UsageError(f"--weights: expected the same labels, got {scheme} and {others[0]}")
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
    # The sources are in the key themselves; a commit of documents alone changes no result.
    key["machine"] = {n: value for n, value in key["machine"].items() if n != "commit"}
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
    from dasr_ops.models import CheckpointError, load_srresnet
    from dasr_ops.models.upscale import choose_device
    from dasr_ops.train.evaluate import DASR_METHODS, PEERS, Networks

    try:
        device = choose_device() if options.device is None else torch.device(options.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UsageError(f"--device {options.device}: {first_line}") from None
    dasr, static = {}, None
    if options.vector or set(options.methods) & set(DASR_METHODS):
        dasr = load_networks(find(options.weights) or (default(),))
    if options.vector and len(dasr) > 1:
        raise UsageError(f"--vector: expected the --weights of one network, got {len(dasr)}")
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


def _mean_vector(levels: Sequence[str], mix: dict[str, float], scheme: str) -> Any:
    """Return the mean over an even mixture of the levels, or of the mix where they are unknown."""
    from dasr_ops.train.degradations import LEVELS
    from dasr_ops.train.evaluate import mix_constants

    known = {level: 1.0 for level in levels if level in LEVELS}
    return mix_constants(known or mix, scheme)[1]


def _folder_names(folders: Sequence[Path], taken: Iterable[str]) -> list[str]:
    """Return how the folders of restored pictures are called in tables."""
    for names in ([f.resolve().name for f in folders], [str(f) for f in folders]):
        if len(set(names)) == len(names) and not set(taken) & set(names):
            return names
    others = f", not called {' or '.join(taken)}" if taken else ""
    raise UsageError(f"--sr: expected different folders{others}")


def _settings(options: Eval, networks: Networks, scores: Scores, **found: Any) -> dict[str, Any]:
    """Return what to remember of an evaluation: how to repeat it, and what its results are of."""
    from dasr_ops.bench.machine import describe
    from dasr_ops.models._digests import network_digest

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
    several = len(networks.dasr) > 1
    digests = {
        **{f"dasr {n}" if several else "dasr": net for n, net in networks.dasr.items()},
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
