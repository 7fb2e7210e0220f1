"""The networks of a run: built, started from files, and saved for use."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from dasr_ops.models import (
    DASR,
    CheckpointError,
    Degradation_Predictor,
    MSRResNetDynamic,
    SRResNet,
    UNetDiscriminatorSN,
    load_dasr,
    load_srresnet,
    read_state_dict,
    save_dasr,
)
from dasr_ops.models._messages import one_line
from dasr_ops.models._tensor_files import write_pth
from dasr_ops.models.shipped import find_weights

from ..config import TrainConfig
from ..degradations import mix_vectors
from .errors import TrainingError


class Restorer(nn.Module):
    """The network that restores pictures, as one module with one call for a training step.

    The static network is trained as a dynamic one with a single expert: the same function in the
    same kernels.

    Args:
        network: a `DASR`, or an `MSRResNetDynamic` with one expert.
        restores: False: only P learns, and G stays as it is and is not run.
    """

    def __init__(self, network: DASR | MSRResNetDynamic, restores: bool = True) -> None:
        super().__init__()
        self.network, self.restores = network, restores
        if not restores:
            assert isinstance(network, DASR)
            network.requires_grad_(False)
            network.net_p.ConvNet.requires_grad_(True)  # all of P that its vectors come from

    def forward(self, lr: Tensor, v: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Magnify pictures.

        Args:
            lr: [B, 3, H, W], 0..1.
            v: true degradation vectors [N, 33] that G is told of the first N pictures, whatever P
                predicts; None for none.

        Returns:
            The pictures [B, 3, H * upscale, W * upscale], not clamped, or None where only P learns,
            and the predicted vectors [B, 33]; None of a static network.
        """
        if not isinstance(self.network, DASR):
            return self.network(lr, lr.new_ones(len(lr), 1)), None
        predicted = self.network.net_p(lr)
        if not self.restores:
            return None, predicted.v
        weights = predicted.weights
        if v is not None:
            true = self.network.net_p.mix(v.to(predicted.v.dtype))
            weights = torch.cat([true, weights[len(v) :]])
        return self.network.net_g(lr, weights), predicted.v


def build_restorer(config: TrainConfig) -> Restorer:
    """Build the network of the settings, from the seed or from the files to start from.

    Raises:
        TrainingError: a file cannot be used, or its sizes are not those of the settings.
    """
    torch.manual_seed(config.seed)
    network = _fresh(config)
    if config.start.weights:
        _start(config, network)
    restorer = Restorer(network, config.loss.restores)
    generator = network.net_g if isinstance(network, DASR) else network
    generator.recompute = config.engine.recompute
    return restorer


def _fresh(config: TrainConfig) -> DASR | MSRResNetDynamic:
    sizes = config.network
    body = {"num_feat": sizes.num_feat, "num_block": sizes.num_block, "upscale": sizes.upscale}
    if sizes.kind == "srresnet":
        return MSRResNetDynamic(num_models=1, **body)
    generator = MSRResNetDynamic(num_models=sizes.num_models, **body)
    predictor = Degradation_Predictor(nf=sizes.predictor_feat, num_networks=sizes.num_models)
    scheme = config.degradation.labels
    predictor.reset_parameters(mix_vectors(config.degradation.levels.drawn(), scheme).mean(0))
    return DASR(generator, predictor, scheme)


def _start(config: TrainConfig, network: DASR | MSRResNetDynamic) -> None:
    try:
        files = tuple(map(find_weights, config.start.weights))
        found = _load(files, config.network.kind)
    except (CheckpointError, OSError, TypeError) as error:
        raise TrainingError(f"start.weights: {error}") from error
    _check_sizes(found, network, ", ".join(map(str, files)))
    if isinstance(found, SRResNet):
        generator = network.net_g if isinstance(network, DASR) else network
        found = MSRResNetDynamic.from_static(found, generator.num_models)
        generator.load_state_dict(found.state_dict())
    else:
        network.load_state_dict(found.state_dict())


def _load(files: tuple[Path, ...], kind: str) -> DASR | SRResNet:
    if len(files) != 1:
        return load_dasr(*files)
    if kind == "srresnet":
        return load_srresnet(files[0])
    # One file holds either a DASR or a static network: the keys tell.
    state = read_state_dict(files[0])
    if any(name.startswith("net_g.") for name in state):
        return load_dasr(files[0])
    return load_srresnet(files[0])


def _check_sizes(found: nn.Module, network: nn.Module, label: str) -> None:
    def parts(module: nn.Module) -> dict[str, int]:
        nets = (module.net_g, module.net_p) if isinstance(module, DASR) else (module,)
        return {name: value for net in nets for name, value in net.config.items()}

    settings = {
        "num_feat": "num_feat",
        "num_block": "num_block",
        "num_models": "num_models",
        "upscale": "upscale",
        "nf": "predictor_feat",
    }
    expected, got = parts(network), parts(found)
    for name, setting in settings.items():
        if name in got and name in expected and got[name] != expected[name]:
            raise TrainingError(
                f"start.weights: {label}: expected network.{setting} = {expected[name]} as in the "
                f"settings, got {got[name]}"
            )


def build_discriminator(config: TrainConfig) -> UNetDiscriminatorSN | None:
    """Build the discriminator, None where no adversarial loss is asked for.

    Raises:
        TrainingError: the file to start from cannot be used.
    """
    if config.loss.gan.weight == 0:
        return None
    torch.manual_seed(config.seed + 1)
    network = UNetDiscriminatorSN(num_feat=config.network.discriminator_feat)
    path = config.start.discriminator
    if path is None:
        return network
    try:
        network.load_state_dict(read_state_dict(path))
    except (CheckpointError, OSError) as error:
        raise TrainingError(f"start.discriminator: {error}") from error
    except RuntimeError as error:
        reason = one_line(error, 300)
        raise TrainingError(f"start.discriminator: {path} does not fit: {reason}") from error
    return network


def export(
    run: Path,
    restorer: Restorer,
    discriminator: nn.Module | None,
    metadata: dict[str, str],
) -> list[Path]:
    """Write the networks for use: `dasr.safetensors` or `srresnet.pth`, and `discriminator.pth`.

    Returns:
        The files.

    Raises:
        OSError: a file cannot be written.
    """
    files = []
    network = restorer.network
    if isinstance(network, DASR):
        files.append(run / "dasr.safetensors")
        save_dasr(network, files[-1], metadata=metadata)
    else:
        static = network.to_static(torch.ones(1, device=network.conv_first.weight.device))
        files.append(run / "srresnet.pth")
        _save_params(static, files[-1])
    if discriminator is not None:
        files.append(run / "discriminator.pth")
        _save_params(discriminator, files[-1])
    return files


def _save_params(network: nn.Module, path: Path) -> None:
    state = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    write_pth({"params": state}, path)
