"""What a training run is made of: typed settings with the defaults of the paper's second stage.

Every field is one of YAML presets and of the command line (`--loss.gan.weight 0.05`), see
`config_files`. Values are checked where they are set; errors name the field.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .config_losses import LossConfig
from .config_rules import are_weights, at_least, require, share
from .degradations import LEVELS


@dataclass
class NetworkConfig:
    """Which network is trained, and how large it is."""

    kind: Literal["dasr", "srresnet"] = "dasr"
    """dasr: G with experts and P. srresnet: the static network, to start a DASR from."""
    upscale: int = 4
    """Magnification: 2, 3 or 4."""
    num_feat: int = 64
    """Features of G."""
    num_block: int = 16
    """Residual blocks of G."""
    num_models: int = 5
    """Experts of each convolution of G."""
    predictor_feat: int = 64
    """Features of P."""
    discriminator_feat: int = 64
    """Features of the discriminator's first layer."""

    def __post_init__(self) -> None:
        require("network.upscale", self.upscale in (2, 3, 4), "2, 3 or 4", self.upscale)
        at_least("network", self, 1, "num_feat", "num_block", "num_models")
        at_least("network", self, 1, "predictor_feat", "discriminator_feat")


@dataclass
class StartConfig:
    """Weights to start from; nothing: a random initialisation from the seed."""

    weights: tuple[Path, ...] = ()
    """A DASR (.safetensors, the official .pth files of G and P, or small, small-gan, dasr or
    dasr-gan for weights of the package), or a static SRResNet whose kernels every expert then
    copies. The sizes of the network must agree."""
    discriminator: Path | None = None
    """Weights of the discriminator (.pth)."""

    def __post_init__(self) -> None:
        count = len(self.weights)
        require("start.weights", count <= 2, "one or two files", count)


@dataclass
class DataConfig:
    """Ground truth, and how patches are cut."""

    train: tuple[Path, ...] = ()
    """Folders of pictures (searched recursively), pictures, LMDB databases (NAME.lmdb), or text
    files with one picture to a line (meta-info lists; paths relative to `root`)."""
    root: Path | None = None
    """Where the paths of meta-info lists begin; default: the folder of the list."""
    patch_size: int = 256
    """Side of a ground-truth patch in pixels; a multiple of the magnification."""
    source_size: int = 400
    """Side of the square that is degraded, of which the patch is cut: at least the patch size.
    What is beyond the patch keeps the borders of blur and resize out of it."""
    batch_size: int = 6
    """Patches of a step on each process (and in each accumulated part)."""
    flip: bool = True
    """Mirror half of the patches left to right."""
    rotate: bool = False
    """Turn patches by a multiple of 90 degrees."""
    min_detail: float = 0.0
    """Least mean difference of neighbouring pixels of a patch, in 8-bit steps; 0: take any."""
    pool_size: int = 192
    """Degraded pairs that are kept and drawn from, so that a batch mixes degradations; 0: none."""
    synthesis: Literal["auto", "loader", "device"] = "auto"
    """Where pictures are degraded: in the loader's processes or on the device of the network.
    auto: the device if it is a GPU."""
    workers: int = 2
    """Processes that read pictures; 0: none. Results do not depend on it."""
    cache_bytes: int = 2**31
    """Decoded pictures kept in memory, by process."""

    def __post_init__(self) -> None:
        at_least("data", self, 1, "batch_size")
        at_least("data", self, 8, "patch_size")
        at_least("data", self, 0, "min_detail", "pool_size", "workers", "cache_bytes")
        expected = f"at least data.patch_size = {self.patch_size}"
        require("data.source_size", self.source_size >= self.patch_size, expected, self.source_size)


@dataclass
class LevelWeights:
    """How often each level of degradation is drawn, relative to the others."""

    clean: float = 0.0
    """Nothing but antialiased bicubic shrinking."""
    clean_area: float = 0.0
    """Nothing but shrinking by averages."""
    weak: float = 0.3
    """One round of weak degradations."""
    standard: float = 0.3
    """One round of stronger ones."""
    severe: float = 0.4
    """Two rounds of strong ones."""

    def __post_init__(self) -> None:
        weights = list(vars(self).values())
        valid = are_weights(weights) and sum(weights) > 0
        require("degradation.levels", valid, "weights >= 0, not all 0", vars(self))

    def drawn(self) -> dict[str, float]:
        """Return the levels that are drawn at all, for `degradations.sample`."""
        return {name: weight for name, weight in vars(self).items() if weight > 0}


@dataclass
class DegradationConfig:
    """What happens to the ground truth; each sample draws its own."""

    levels: LevelWeights = field(default_factory=LevelWeights)
    """Levels of degradation."""
    labels: Literal["unified", "official"] = "unified"
    """Meaning of the degradation vector v: one range per quantity, or that of the released
    weights."""
    sharpen: bool = True
    """Degrade the ground truth sharpened by unsharp masking, as the paper does."""


@dataclass
class OptimizerConfig:
    """Optimiser of G with P, and of the discriminator."""

    name: str = "Adam"
    """A class of torch.optim."""
    lr: float = 1e-4
    """Learning rate of G and P at its highest."""
    discriminator_lr: float = 1e-4
    """Learning rate of the discriminator at its highest."""
    betas: tuple[float, float] = (0.9, 0.99)
    """For optimisers that have them."""
    weight_decay: float = 0.0
    """Weight decay."""
    options: dict[str, float] = field(default_factory=dict)
    """More numbers for the optimiser's constructor, by name."""
    clip_norm: float = 0.0
    """Bound of the norm of the gradients of G and P together; 0: none."""

    def __post_init__(self) -> None:
        at_least("optimizer", self, 0, "lr", "discriminator_lr", "weight_decay", "clip_norm")
        valid = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require("optimizer.betas", valid, "two numbers >= 0 and below 1", self.betas)
        fields = sorted({"lr", "betas", "weight_decay", "params"} & set(self.options))
        expected = "options that have no field of their own"
        require("optimizer.options", not fields, expected, fields)
        valid = all(math.isfinite(value) for value in self.options.values())
        require("optimizer.options", valid, "finite numbers", self.options)


@dataclass
class ScheduleConfig:
    """Length of the run and course of the learning rate."""

    iterations: int = 500_000
    """Steps of the optimiser."""
    kind: Literal["multistep", "cosine", "constant"] = "constant"
    """multistep: times `gamma` at each milestone. cosine: down to `final` along half a cosine."""
    milestones: tuple[int, ...] = (400_000,)
    """Steps of multistep."""
    gamma: float = 0.5
    """Factor of multistep."""
    final: float = 0.0
    """Where the cosine ends, as a share of the highest learning rate."""
    warmup: int = 0
    """Steps of a linear rise from 0 at the start."""

    def __post_init__(self) -> None:
        at_least("schedule", self, 1, "iterations")
        at_least("schedule", self, 0, "warmup", "gamma")
        share("schedule", self, "final")
        valid = all(m > 0 for m in self.milestones) and list(self.milestones) == sorted(
            set(self.milestones)
        )
        require("schedule.milestones", valid, "rising step numbers", self.milestones)


@dataclass
class EngineConfig:
    """How the computation is done."""

    device: str = "auto"
    """cpu, cuda, cuda:1; auto: a GPU if there is one (under torchrun that of the local rank)."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic under autocast; weights stay float32."""
    compile: bool = False
    """torch.compile the networks."""
    channels_last: bool = True
    """Memory format of pictures and weights."""
    accumulate: int = 1
    """Parts of a batch whose gradients are added up before a step."""
    ema: float = 0.999
    """Decay of the averages of G and P that are evaluated and saved; 0: none."""
    recompute: bool = False
    """Gradient checkpointing: compute features of G again on the way back, for large patches."""
    deterministic: bool = False
    """Only algorithms that give the same bits on each run: with it, a run that was killed and
    resumed on one device ends in the same weights as one that was not."""
    threads: int = 0
    """Threads of PyTorch on the CPU; 0: its default."""

    def __post_init__(self) -> None:
        at_least("engine", self, 1, "accumulate")
        at_least("engine", self, 0, "threads")
        require("engine.ema", 0 <= self.ema < 1, "0 or more, below 1", self.ema)


@dataclass
class ValidationConfig:
    """Pictures that are looked at while training."""

    pictures: Path | None = None
    """A folder of ground truth (or one picture), or a folder with `lr/` and `gt/` (pairs of equal
    names)."""
    levels: tuple[str, ...] = ("clean", "weak", "standard", "severe")
    """How ground truth is degraded, seeded by name of picture and level; pairs are taken as they
    are."""
    every: int = 5000
    """Steps between validations; 0: only at the end."""
    limit: int = 0
    """At most so many pictures; 0: all."""
    border: int = -1
    """Pixels cut from each side; -1: the magnification."""
    perceptual: bool = False
    """Also the learned perceptual distance ST-LPIPS, of the package stlpips-pytorch."""

    def __post_init__(self) -> None:
        at_least("validation", self, 0, "every", "limit")
        at_least("validation", self, -1, "border")
        unknown = sorted(set(self.levels) - set(LEVELS))
        require("validation.levels", not unknown, f"names among {sorted(LEVELS)}", unknown)


@dataclass
class LogConfig:
    """What is written down."""

    every: int = 100
    """Steps between entries of the CSV file and of TensorBoard."""
    images_every: int = 5000
    """Steps between grids of pictures; 0: none."""
    tensorboard: bool = True
    """Write TensorBoard files where that package is installed."""

    def __post_init__(self) -> None:
        at_least("log", self, 1, "every")
        at_least("log", self, 0, "images_every")


@dataclass
class CheckpointConfig:
    """What can be resumed from."""

    every: int = 5000
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints kept; older ones are removed."""
    allow_changes: bool = False
    """Go on with a run although it was begun with other settings."""

    def __post_init__(self) -> None:
        at_least("checkpoint", self, 1, "every", "keep")


@dataclass
class TrainConfig:
    """A training run."""

    run: Path = Path("runs/dasr")
    """Folder of the run: settings, log, checkpoints, result. A run that was interrupted goes on
    when it is started again with the same folder."""
    seed: int = 0
    """Of initialisation, patches and degradations."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Networks."""
    start: StartConfig = field(default_factory=StartConfig)
    """Weights to start from."""
    data: DataConfig = field(default_factory=DataConfig)
    """Ground truth."""
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    """Degradations."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Losses."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimisers."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Length and learning rate."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Computation."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Validation."""
    log: LogConfig = field(default_factory=LogConfig)
    """Log."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""

    def __post_init__(self) -> None:
        require("seed", 0 <= self.seed < 2**63, "0 to 2^63 - 1", self.seed)
        for name in ("patch_size", "source_size"):
            value, scale = getattr(self.data, name), self.network.upscale
            require(f"data.{name}", value % scale == 0, f"a multiple of {scale}", value)
        loss, kind = self.loss, self.network.kind
        if loss.gan.weight:
            valid = self.data.patch_size % 8 == 0
            expected = "a multiple of 8 for the discriminator"
            require("data.patch_size", valid, expected, self.data.patch_size)
        trains = loss.restores or (kind == "dasr" and loss.regression.weight > 0)
        require("loss", trains, "a weight above 0 that trains the network", "none")
        pictures = self.validation.pictures
        expected = "none where no picture is restored (dasr eval --vector judges P alone)"
        require("validation.pictures", loss.restores or pictures is None, expected, str(pictures))
        if kind == "srresnet":
            count = len(self.start.weights)
            require("start.weights", count <= 1, "one file for network.kind = srresnet", count)
