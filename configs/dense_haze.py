"""Dense-Haze: 55 pairs of dense, homogeneous real haze (Table 1, middle; Sec. 5.1).

Fifty pairs to train on, five to score. Both paths name the data set's folder: training uses pairs 01 to 50,
the test pairs 51 to 55:

    python -m difflid_jax.train --config=configs/dense_haze.py --workdir=runs/dense_haze \\
        --config.data.train=/data/Dense-Haze \\
        --config.data.test=/data/Dense-Haze \\
        --config.prior=/weights/imagenet256

1. Data: Dense-Haze (55 pairs, 1600x1200) from its NTIRE page;
   `python -m difflid_jax.check_data /data/Dense-Haze --dataset=dense_haze` checks the pairs.
2. Prior: OpenAI's 256x256_diffusion_uncond.pt, converted once by `python -m convert_weights.openai_ddpm`
   (--help gives its flags and the download).

Schedule: 2 steps per epoch (50 pairs, batch 40), 2,400 steps; 2e-4 halved every 300 of 1,200 epochs.
To time a step on your machine: `python scripts/benchmark.py train --config=configs/dense_haze.py`.

Expected score, from the paper: 16.97 dB PSNR, 0.584 SSIM, 0.406 LPIPS; not reproduced here yet.
"""

from difflid_jax.config import schema


def get_config():
    """The paper's settings; data and prior are given on the command line."""
    config = schema.default()
    config.prior = ""
    config.data.dataset = "dense_haze"
    config.training.log_every = 20
    config.training.evaluate_every = 400
    config.training.checkpoint_every = 400
    return config
