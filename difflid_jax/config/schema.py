"""Every field of an experiment with its default, as an ml_collections ConfigDict.

The files of `configs/` start from `default()` (or `default_prior()`) and change what their experiment needs;
the command line overrides both (--config.data.batch_size=8). `config.experiment` turns a ConfigDict into the
specs that the rooms take. A new field's default must keep the previous behavior: a config.json that lacks
the field is read with the default.
"""

from ml_collections import ConfigDict


def default() -> ConfigDict:
    """The training of a restorer, with the paper's values (Sec. 5.1) where it states one."""
    return ConfigDict(
        {
            "seed": 0,
            # Weights of the frozen feature network: the name of shipped weights or a weights folder.
            "prior": "photos64",
            # Weights of a restorer of the same architecture to start from; '' for a random start.
            "init": "",
            "frequency_weight": 0.0,  # of the L1 distance of Fourier transforms, added to Eq. 9
            # ((step, field, value), …): fields with another value from a step on (config.changes.CHANGEABLE).
            "changes": (),
            "data": {
                "dataset": "its",  # layout of the folders, one of data.pairing.layouts.LAYOUTS
                "train": "",  # path of the training images
                "holdout": 0,  # > 0: hold this many training elements out for validation, drawn by seed
                "validation": "",  # path of images scored during training, to choose the best weights
                "test": "",  # path of images scored once, at the end
                # First and last id of the images with depth that a role uses, as in (1, 1299); () is all.
                "train_ids": (),
                "validation_ids": (),
                "test_ids": (),
                "frame": "nyu_mirrored",  # of images with depth: or 'nyu', 'whole' (data.rgbd.FRAMES)
                # For these two roles, if they differ from `dataset` and `source`.
                "validation_dataset": "",
                "validation_source": "",
                "test_dataset": "",
                "test_source": "",
                "source": "folders",  # 'folders', 'tfds'; with haze made on the fly 'photographs', 'rgbd'
                "crop": 128,  # side in pixels
                "flip": True,
                "scale": (1.0, 1.0),  # images are first resized by a factor from this range
                "view": False,  # features of the whole image, at features.side, for every crop
                # With `view`: regions, with sides scaled by a factor from this range, stand for images.
                "region": (1.0, 1.0),
                "batch_size": 40,  # over all devices and processes
                "workers": 0,  # processes that decode and crop; 0 for threads of this process
                "cache": "",  # folder of the decoded cache; '' is WORKDIR/cache, 'off' is none
                # > 0: depth of the skies found in photographs without depth, in multiples of the scene's
                # farthest point, so that haze hides them; training only (data.haze.plausible_depth).
                "sky": 0.0,
                # Haze made on the fly; clean to jpeg never apply to evaluation (data.augment.HazeSpec).
                "haze": {
                    "airlight": (0.7, 1.0),
                    "beta": (0.6, 1.8),
                    "seed": 0,
                    "clean": 0.0,
                    "flat": 0.0,
                    "white": 0.0,
                    "linear": 0.0,
                    "tint": 0.0,
                    "gamma": (1.0, 1.0),
                    "light": (1.0, 1.0),
                    "dim": 1.0,
                    "noise": 0.0,
                    "jpeg": (),
                },
            },
            "features": {
                "kind": "h_space",  # 'h_space', 'vgg16', 'resnet50', 'release'
                "layer": "middle",  # 'middle', 'encoder:i', 'decoder:i'
                "times": (0, 500),
                "noise_at_zero": False,
                "side": 0,  # > 0: the prior sees every image resized to side×side pixels
                "dtype": "auto",  # bfloat16 on GPU and TPU, float32 on CPU
                "random": False,  # control: the frozen network with random weights
                "noise_seed": 0,  # of the noise at evaluation and in the restorer
                # > 0: with data.view, the features of the training images are computed once, with this many
                # noises per image, and kept in the decoded cache's folder (training.feature_bank).
                "cache": 0,
            },
            "network": {
                "kind": "paper",  # or 'plus' (DiffLI²D+, network.plus)
                "branches": 1,  # gated branches per block of DiffLI²D+
                "patch": 1,  # DiffLI²D+: the first level has one position per patch×patch pixels
                "head": "sum",  # or 'affine', of DiffLI²D+: J = I + a ⊙ I + b
                "preset": "paper",  # sets the widths; '' for those below
                "widths": (64, 128, 256, 512),
                "heads": 4,
                "variant": "",  # 'full', 'without_cim', 'without_hae', 'baseline' set the next two
                "content": "cim",  # or 'self_attention'
                "haze": "hae",  # or 'self_attention'
                "dtype": "float32",
            },
            "optimizer": {
                "learning_rate": 2e-4,
                "b1": 0.9,
                "b2": 0.999,
                "schedule": "halve",  # 'halve', 'cosine', 'constant'
                "cycles": 1,  # cosines one after the other
                "halve_every_epochs": 300,
                "warmup_steps": 0,
                "ema": 0.0,  # decay of the averaged weights; 0 for none
                "clip": 0.0,  # global norm of the gradients; 0 for none
                "weight_decay": 0.0,
            },
            "training": {
                "epochs": 1200,
                "steps": 0,  # > 0: length in steps instead of epochs
                "minutes": 0.0,  # > 0: stop after this long; the schedules still follow the steps
                "log_every": 50,  # steps
                "evaluate_every": 3500,  # steps; 0: only at the end
                "checkpoint_every": 1000,  # steps
                "keep": 3,  # checkpoints
                "max_bad_steps": 10,  # stop after this many non-finite steps in a row
                "profile_steps": "",  # 'first:last'
                "fsdp": False,  # shard the frozen network over the devices
                "tensorboard": True,
            },
            "evaluation": {
                "protocol": "paper",
                "batch_size": 1,
                "lpips": True,
                "best": "psnr",
                "limit": 0,  # > 0: during training, score only this many images, from the first
            },
        }
    )


def default_prior() -> ConfigDict:
    """The training of a diffusion prior: a small U-Net of OpenAI's class."""
    shared = default()
    return ConfigDict(
        {
            "seed": 0,
            "init": "",  # weights (kind unet, with the decoder) of the same architecture to start from
            "dtype": "float32",  # of the computation
            "variance_weight": 0.001,  # of the bound that trains the variance (Nichol & Dhariwal 2021)
            "data": {
                "train": "",  # folders or tars of images, separated by commas
                "validation": "",  # the same, held out; '' for no evaluation
                "train_ids": (),  # first and last id of images with depth; () is all
                "validation_ids": (),
                "frame": "nyu_mirrored",  # of images with depth (data.rgbd.FRAMES)
                "crop": 64,  # side in pixels
                "scale": (1.0, 1.0),  # images are first resized by a factor from this range
                "flip": True,
                "batch_size": 128,
                "workers": 0,
                "cache": "",
            },
            # See diffusion.unet.UNetSpec; attention at these down-sampling rates.
            "unet": {
                "image_size": 64,
                "model_channels": 32,
                "num_res_blocks": 1,
                "attention_resolutions": (8, 16),
                "channel_mult": (1, 2, 3, 4, 4),
                "num_head_channels": 32,
                "dropout": 0.0,
                "noise_schedule": "linear",
            },
            "optimizer": {
                **shared.optimizer.to_dict(),
                "learning_rate": 5e-4,
                "schedule": "cosine",
                "warmup_steps": 300,
                "ema": 0.999,
                "clip": 1.0,
            },
            "training": shared.training.to_dict(),
            "evaluation": {"batches": 4, "sample_steps": 50},
        }
    )
