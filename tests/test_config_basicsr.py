"""The official YAML layout: what means the same is taken over, the rest is named or refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from dasr_ops.train.basicsr import BasicSRSettings, from_basicsr, load_basicsr
from dasr_ops.train.config_files import load_config, to_dict
from dasr_ops.train.config_rules import ConfigError
from dasr_ops.train.config_yaml import parse_yaml

yaml = pytest.importorskip("yaml", reason="settings in files need PyYAML")

# The layout of the official file, written anew; every key that its code reads is here.
DASR = """
name: my_dasr
model_type: DASRModel
scale: 4
num_gpu: 1
num_networks: 5
manual_seed: 3
l1_gt_usm: true
percep_gt_usm: true
gan_gt_usm: false
degree_list: [weak_degrade_one_stage, standard_degrade_one_stage, severe_degrade_two_stage]
degree_prob: [0.3, 0.3, 0.4]

resize_prob_weak1: [0.1, 0.2, 0.7]
resize_range_weak1: [0.85, 1.2]
gaussian_noise_prob_weak1: 0.5
noise_range_weak1: [1, 10]
poisson_scale_range_weak1: [0.05, 0.5]
gray_noise_prob_weak1: 0.4
jpeg_range_weak1: [90, 95]

resize_prob_standard1: [0.3, 0.4, 0.3]
resize_range_standard1: [0.5, 1.2]
gaussian_noise_prob_standard1: 0.5
noise_range_standard1: [1, 20]
poisson_scale_range_standard1: [0.05, 1.5]
gray_noise_prob_standard1: 0.4
jpeg_range_standard1: [50, 95]

resize_prob: [0.2, 0.7, 0.1]
resize_range: [0.15, 1.5]
gaussian_noise_prob: 0.5
noise_range: [1, 30]
poisson_scale_range: [0.05, 3]
gray_noise_prob: 0.4
jpeg_range: [30, 95]

second_blur_prob: 0.8
resize_prob2: [0.3, 0.4, 0.3]
resize_range2: [0.3, 1.2]
gaussian_noise_prob2: 0.5
noise_range2: [1, 25]
poisson_scale_range2: [0.05, 2.5]
gray_noise_prob2: 0.4
jpeg_range2: [30, 95]

gt_size: 256
queue_size: 192

datasets:
  train:
    name: photos
    type: DASRDataset
    dataroot_gt: data/photos
    meta_info: data/list.txt
    io_backend: {type: disk}
    blur_kernel_size_weak1: 21
    blur_kernel_size_minimum_weak1: 7
    kernel_list_weak1: [iso, aniso]
    kernel_prob_weak1: [0.65, 0.35]
    sinc_prob_weak1: 0
    blur_sigma_weak1: [0.2, 0.8]
    betag_range_weak1: [0.5, 4]
    blur_kernel_size_standard1: 21
    blur_kernel_size_minimum_standard1: 7
    kernel_list_standard1: [aniso, iso]
    kernel_prob_standard1: [0.35, 0.65]
    sinc_prob_standard1: 0
    blur_sigma_standard1: [0.2, 1.5]
    blur_kernel_size: 21
    blur_kernel_size_minimum: 7
    kernel_list: [iso, aniso]
    kernel_prob: [0.65, 0.35]
    sinc_prob: 0
    blur_sigma: [0.2, 3]
    blur_kernel_size2: 21
    blur_kernel_size2_minimum: 7
    kernel_list2: [iso, aniso]
    kernel_prob2: [0.65, 0.35]
    sinc_prob2: 0
    blur_sigma2: [0.2, 1.5]
    final_sinc_prob: 0.8
    gt_size: 256
    use_hflip: true
    use_rot: false
    num_worker_per_gpu: 3
    batch_size_per_gpu: 6
    prefetch_mode: ~
  val: {name: real, type: SingleImageDataset, dataroot_lq: data/real}

network_g: {type: MSRResNetDynamic, num_in_ch: 3, num_out_ch: 3, num_feat: 64, num_block: 16,
            num_models: 5, upscale: 4}
network_p: {type: Degradation_Predictor, in_nc: 3, nf: 64, num_params: 33, num_networks: 5}
network_d: {type: UNetDiscriminatorSN, num_in_ch: 3, num_feat: 64, skip_connection: true}

path:
  pretrain_network_g: start/srresnet.pth
  pretrain_network_p: ~
  strict_load_g: true
  resume_state: ~

train:
  ema_decay: 0.999
  optim_g: {type: Adam, lr: !!float 1e-4, weight_decay: 0, betas: [0.9, 0.99]}
  optim_d: {type: Adam, lr: 2e-4, weight_decay: 0, betas: [0.9, 0.99]}
  scheduler: {type: MultiStepLR, milestones: [200000, 400000], gamma: 0.5}
  total_iter: !!float 5e5
  warmup_iter: -1
  pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}
  cycle_opt: {type: L1Loss, loss_weight: 1.0}
  regress_opt: {type: L1Loss, loss_weight: 0.5, reduction: mean}
  perceptual_opt:
    type: PerceptualLoss
    layer_weights: {conv1_2: 0.1, conv2_2: 0.1, conv3_4: 1, conv4_4: 1, conv5_4: 1}
    vgg_type: vgg19
    use_input_norm: true
    perceptual_weight: !!float 1
    style_weight: 0
    range_norm: false
    criterion: l1
  gan_opt: {type: GANLoss, gan_type: vanilla, real_label_val: 1.0, fake_label_val: 0.0,
            loss_weight: !!float 1e-1}
  net_d_iters: 1
  net_d_init_iters: 0

val: {val_freq: !!float 2e3, save_img: true}
logger: {print_freq: 50, save_checkpoint_freq: !!float 4e3, use_tb_logger: true,
         wandb: {project: ~, resume_id: ~}}
dist_params: {backend: nccl, port: 29500}
"""

STATIC = """
name: srresnet_x4
model_type: SRModel
scale: 4
num_gpu: 4
datasets:
  train:
    type: PairedImageDataset
    dataroot_gt: data/hr.lmdb
    dataroot_lq: data/lr.lmdb
    meta_info_file: list.txt
    io_backend: {type: lmdb}
    gt_size: 128
    use_flip: true
    use_rot: true
    num_worker_per_gpu: 6
    batch_size_per_gpu: 16
    dataset_enlarge_ratio: 100
  val: {type: PairedImageDataset, dataroot_gt: data/set5, dataroot_lq: data/set5_x4,
        io_backend: {type: disk}}
network_g: {type: MSRResNet, num_in_ch: 3, num_out_ch: 3, num_feat: 64, num_block: 16, upscale: 4}
path: {pretrain_network_g: ~, strict_load_g: true, resume_state: ~}
train:
  ema_decay: 0.999
  optim_g: {type: Adam, lr: !!float 2e-4, weight_decay: 0, betas: [0.9, 0.99]}
  scheduler: {type: CosineAnnealingRestartLR, periods: [250000, 250000, 250000, 250000],
              restart_weights: [1, 1, 1, 1], eta_min: !!float 1e-7}
  total_iter: 1000000
  warmup_iter: -1
  pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}
val:
  val_freq: !!float 5e3
  metrics:
    psnr: {type: calculate_psnr, crop_border: 4, test_y_channel: false}
    niqe: {type: calculate_niqe, crop_border: 0}
"""


def _read(text: str, **changes: object) -> BasicSRSettings:
    """Read a file in which some keys, named with `__` for a dot, have other values (... : none)."""
    options = parse_yaml(text, "train.yml")
    for name, value in changes.items():
        *path, last = name.split("__")
        inner = options
        for key in path:
            inner = inner[key]
        if value is ...:
            del inner[last]
        else:
            inner[last] = value
    return from_basicsr(options)


def _error(text: str, **changes: object) -> str:
    with pytest.raises(ConfigError) as caught:
        _read(text, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_official_layout():
    config, ignored, notes = _read(DASR)
    expected = load_config("paper")
    expected.run, expected.seed = Path("runs/my_dasr"), 3
    expected.start.weights = (Path("start/srresnet.pth"),)
    expected.data.train, expected.data.root = (Path("data/list.txt"),), Path("data/photos")
    expected.data.workers = 3
    expected.loss.regression.weight = 0.5
    layers = {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0}
    expected.loss.perceptual.layers = layers
    expected.optimizer.discriminator_lr = 2e-4
    expected.schedule.kind, expected.schedule.milestones = "multistep", (200_000, 400_000)
    expected.validation.levels = ("weak", "standard", "severe")
    expected.validation.every, expected.log.every, expected.checkpoint.every = 2000, 50, 4000
    assert to_dict(config) == to_dict(expected)
    assert config == expected
    assert ignored == (
        *("datasets.train.name", "datasets.train.betag_range_weak1"),
        *("datasets.train.prefetch_mode", "datasets.val.name", "datasets.val.type"),
        *("datasets.val.dataroot_lq", "train.cycle_opt.type", "train.cycle_opt.loss_weight"),
        *("val.save_img", "logger.wandb.project", "logger.wandb.resume_id"),
        *("dist_params.backend", "dist_params.port"),
    )
    assert notes == ()


def test_static_network():
    config, ignored, notes = _read(STATIC)
    expected = load_config("paper-psnr")  # the same recipe
    expected.run = Path("runs/srresnet_x4")
    expected.data.train, expected.data.workers = (Path("data/hr.lmdb"),), 6
    expected.validation.pictures, expected.validation.border = Path("data/set5"), 4
    expected.log.tensorboard = False
    expected.schedule.final = 1e-7 / 2e-4
    expected.loss.perceptual.usm = False
    assert config == expected
    assert ignored == (
        *("datasets.train.dataroot_lq", "datasets.train.meta_info_file"),
        *("datasets.train.dataset_enlarge_ratio", "datasets.val.dataroot_lq"),
        "path.strict_load_g",  # nothing is loaded
        *("val.metrics.psnr.test_y_channel", "val.metrics.niqe.type"),
        "val.metrics.niqe.crop_border",
    )
    assert [note.partition(":")[0] for note in notes] == [
        *("datasets.train.dataroot_lq", "datasets.val.dataroot_lq"),
        *("train.scheduler.type", "num_gpu"),
    ]


def _leaves(mapping, path=()):
    for key, value in mapping.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield "__".join((*path, key)), value


def _other(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value * 2 + 3
    return [*value, 7] if isinstance(value, list) else "other"


@pytest.mark.parametrize("text", [DASR, STATIC], ids=["dasr", "static"])
def test_no_key_is_dropped_silently(text):
    """Another value changes the settings, is refused or noted; or the key is named as ignored."""
    whole = _read(text)
    for name, value in _leaves(yaml.safe_load(text)):
        dotted = name.replace("__", ".")
        try:
            changed = _read(text, **{name: _other(value)})
        except ConfigError as error:
            assert name.split("__")[-1] in str(error) or "as settings of ours" in str(error), dotted
            continue
        effect = changed.config != whole.config or changed.notes != whole.notes
        assert effect or dotted in changed.ignored, dotted


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"l1_gt_usm": False}, {"loss.pixel.usm": False}),
        ({"gan_gt_usm": True}, {"loss.gan.usm": True}),
        ({"percep_gt_usm": False}, {"loss.perceptual.usm": False}),
        ({"train__gan_opt": ...}, {"loss.gan.weight": 0}),
        ({"train__perceptual_opt": None}, {"loss.perceptual.weight": 0}),
        ({"train__regress_opt": ...}, {"loss.regression.weight": 0}),
        ({"train__regress_opt__type": "MSELoss"}, {"loss.regression.criterion": "l2"}),
        ({"train__pixel_opt__type": "MSELoss"}, {"loss.pixel.criterion": "l2"}),
        ({"train__pixel_opt__type": "CharbonnierLoss"}, {"loss.pixel.criterion": "charbonnier"}),
        ({"train__gan_opt__gan_type": "wgan_softplus"}, {"loss.gan.kind": "wgan_softplus"}),
        ({"train__optim_g__lr": "3e-4"}, {"optimizer.lr": 3e-4}),
        ({"train__warmup_iter": 2000}, {"schedule.warmup": 2000}),
        ({"train__ema_decay": ...}, {"engine.ema": 0}),
        ({"train__scheduler": None}, {"schedule.kind": "constant"}),
        ({"num_gpu": 0}, {"engine.device": "cpu"}),
        ({"num_gpu": "auto"}, {"engine.device": "auto"}),
        ({"manual_seed": ...}, {"seed": 0}),
        ({"queue_size": 96}, {"data.pool_size": 96}),
        ({"gt_size": 480}, {"data.patch_size": 480, "data.source_size": 480}),
        ({"gt_size": ...}, {"data.patch_size": 256}),
        ({"datasets__train__meta_info": None}, {"data.train": ["data/photos"], "data.root": None}),
        ({"datasets__train__use_rot": True}, {"data.rotate": True}),
        ({"val": None}, {"validation.every": 0}),
        (
            {
                "degree_prob": [1, 0],
                "degree_list": ["weak_degrade_one_stage", "severe_degrade_two_stage"],
                "noise_range": [9, 9],  # not drawn, not checked
            },
            {"degradation.levels.weak": 1, "degradation.levels.severe": 0},
        ),
        (
            {"path__pretrain_network_p": "start/p.pth", "path__pretrain_network_d": "start/d.pth"},
            {
                "start.weights": ["start/srresnet.pth", "start/p.pth"],
                "start.discriminator": "start/d.pth",
                "degradation.labels": "official",
            },
        ),
    ],
)
def test_single_values(changes, expected):
    settings = to_dict(_read(DASR, **changes).config)
    for name, value in expected.items():
        inner = settings
        for key in name.split("."):
            inner = inner[key]
        assert inner == value, name


def test_optimiser_options():
    text = DASR.replace("betas: [0.9, 0.99]}", "betas: [0.9, 0.99], amsgrad: true, eps: 1e-6}")
    found = _read(text)
    assert found.config.optimizer.options == {"amsgrad": 1.0, "eps": 1e-6}
    assert not any("optim" in name for name in found.ignored)
    message = _error(text, train__optim_d__eps=1e-8)
    assert message.endswith("expected the same as in train.optim_g, 1e-06")


def test_one_cosine_has_no_note():
    total = {"train__scheduler__periods": [1_000_000], "train__scheduler__restart_weights": [1]}
    assert not any("scheduler" in note for note in _read(STATIC, **total).notes)


def test_adversarial_static_network():
    extra = {"model_type": "SRGANModel"}
    options = yaml.safe_load(DASR)
    extra["network_d"] = {**options["network_d"], "num_feat": 32}
    extra["train__gan_opt"] = options["train"]["gan_opt"]
    config = _read(STATIC, **extra).config
    assert (config.network.kind, config.network.discriminator_feat) == ("srresnet", 32)
    assert (config.loss.gan.weight, config.loss.gan.usm) == (0.1, False)
    # An SRModel does not look at it.
    ignored = _read(STATIC, train__gan_opt=extra["train__gan_opt"]).ignored
    assert "train.gan_opt.loss_weight" in ignored


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "RealESRGANModel"}, "train.yml:3: model_type: expected one of DASRModel, "),
        ({"network_g__type": "RRDBNet"}, "network_g.type: expected one of MSRResNetDynamic, got "),
        ({"network_g": ...}, "train.yml: network_g.type: expected one of MSRResNetDynamic"),
        ({"network_g__num_in_ch": 1}, "network_g.num_in_ch: expected only 3 here, got 1"),
        ({"network_g__upscale": 2}, "network_g.upscale: expected the same as scale, 4 here, got 2"),
        ({"network_p__num_params": 100}, "network_p.num_params: expected only 33 here, got 100"),
        ({"network_p__num_params": ...}, "network_p.num_params: expected only 33 here, got 100"),
        ({"num_networks": 4}, "num_networks: expected the same as network_g.num_models, 5 here"),
        ({"network_d__type": "VGGStyleDiscriminator"}, "network_d.type: expected one of UNet"),
        ({"network_d__skip_connection": False}, "network_d.skip_connection: expected only True"),
        ({"noise_range": [1, 40]}, "train.yml:33: noise_range: expected only [1.0, 30.0] here, got "
         "[1.0, 40.0]"),
        ({"noise_range": [1]}, "noise_range: expected only [1.0, 30.0] here"),
        ({"noise_range": 3}, "noise_range: expected a list, got 3"),
        ({"second_blur_prob": 1}, "second_blur_prob: expected only 0.8 here, got 1.0"),
        ({"jpeg_range_standard1": [30, 95]}, "jpeg_range_standard1: expected only [50.0, 95.0]"),
        ({"datasets__train__sinc_prob": 0.1}, "datasets.train.sinc_prob: expected only 0.0 here"),
        ({"datasets__train__blur_sigma2": [0.2, 3]}, "datasets.train.blur_sigma2: expected only"),
        ({"datasets__train__blur_kernel_size": 15}, "datasets.train.blur_kernel_size: expected "
         "only 21 here, got 15"),
        ({"datasets__train__kernel_list2": ["iso", "plateau_iso"]}, "datasets.train.kernel_list2: "
         "expected iso and aniso"),
        ({"datasets__train__kernel_prob2": [0.35, 0.65]}, "datasets.train.kernel_prob2: expected "),
        ({"datasets__train__final_sinc_prob": 1}, "datasets.train.final_sinc_prob: expected only"),
        ({"datasets__train__type": "RealESRGANDataset"}, "datasets.train.type: expected one of"),
        ({"datasets__train__io_backend": {"type": "lmdb"}}, "datasets.train.dataroot_gt: expected "
         "a name that ends in .lmdb, got data/photos"),
        ({"degree_list": ["mild"]}, "degree_list: expected names among weak_degrade_one_stage"),
        ({"degree_prob": [1]}, "degree_prob: expected 3 numbers, got 1"),
        ({"path__resume_state": "a.state"}, "path.resume_state: training states of BasicSR cannot"),
        ({"path__pretrain_network_g": ..., "path__pretrain_network_p": "p.pth"},
         "path.pretrain_network_p: expected path.pretrain_network_g beside it"),
        ({"train__total_iter": ...}, "train.total_iter: expected the number of steps"),
        ({"train__total_iter": 10.5}, "train.total_iter: expected a whole number, got 10.5"),
        ({"train__optim_g": ...}, "train.optim_g.lr: expected a learning rate"),
        ({"train__optim_d__type": "SGD"}, "train.optim_d.type: expected the same as in "
         "train.optim_g, Adam here, got 'SGD'"),
        ({"train__optim_d__betas": ...}, "train.optim_d.betas: expected the same as in"),
        ({"train__scheduler__type": "LinearLR"}, "train.scheduler.type: expected one of MultiStep"),
        ({"train__scheduler__restarts": [0, 5]}, "train.scheduler.restarts: expected only [0.0]"),
        ({"train__pixel_opt__type": "WeightedTVLoss"}, "train.pixel_opt.type: expected one of"),
        ({"train__pixel_opt__reduction": "sum"}, "train.pixel_opt.reduction: expected only mean"),
        ({"train__pixel_opt": 3}, "train.pixel_opt: expected 'name: value' lines, got 3"),
        ({"train__perceptual_opt__vgg_type": "vgg16"}, "train.perceptual_opt.vgg_type: expected "),
        ({"train__perceptual_opt__range_norm": True}, "train.perceptual_opt.range_norm: expected "),
        ({"train__perceptual_opt__layer_weights": {"relu1_2": 1}}, "as settings of ours: "
         "loss.perceptual.layers: expected layers of vgg19"),
        ({"train__gan_opt__gan_type": "wgan"}, "train.gan_opt.gan_type: expected one of vanilla"),
        ({"train__gan_opt__real_label_val": 0.9}, "train.gan_opt.real_label_val: expected only 1"),
        ({"train__net_d_iters": 2}, "train.net_d_iters: expected only 1 here"),
        ({"gt_size": 254}, "as settings of ours: data.patch_size: expected a multiple of 4"),
        ({"gt_size": "big"}, "gt_size: expected a number, got 'big' (text)"),
        ({"datasets": 5}, "datasets: expected 'name: value' lines, got 5"),
    ],
)  # fmt: skip
def test_what_does_not_exist_here_is_refused(changes, message):
    found = _error(DASR, **changes)
    assert found.startswith("train.yml:")
    assert message in found


def test_notes_on_what_is_done_otherwise():
    changes = {"path__strict_load_g": False, "train__net_d_init_iters": 100, "num_gpu": 4}
    found = _read(DASR, **changes, path__pretrain_network_p="p.pth")
    starts = ("path.strict_load_g: ", "train.net_d_init_iters: for 100 steps ")
    starts += ("path.pretrain_network_p: ", "num_gpu: 4: ")
    assert len(found.notes) == len(starts)
    assert all(map(str.startswith, found.notes, starts))
    assert found.config.loss.gan.start == 100


def test_files(tmp_path):
    path = tmp_path / "train.yml"
    path.write_text(DASR, encoding="utf-8")
    found = load_basicsr(path)
    assert found == _read(DASR)
    assert from_basicsr(yaml.safe_load(DASR)) == found  # from plain dictionaries too
    options = yaml.safe_load(DASR)
    before = copy.deepcopy(options)
    from_basicsr(options)
    assert options == before
    path.write_text("scale: 4\nscale: 2")
    with pytest.raises(ConfigError, match=r"train\.yml:2: scale was set before"):
        load_basicsr(path)
    with pytest.raises(ConfigError, match="No such file"):
        load_basicsr(tmp_path / "nothing.yml")
    path.write_text("")
    with pytest.raises(ConfigError, match=r"train\.yml: network_g\.type: expected"):
        load_basicsr(path)
