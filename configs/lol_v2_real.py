"""LOL-v2 Real: low-light photographs (Table 4, right; Sec. 5.4).

The same network and schedule as for haze. Both paths name the data set's folder: training uses `Train`,
the test `Test`:

    python -m difflid_jax.train --config=configs/lol_v2_real.py --workdir=runs/lol_v2_real \\
        --config.data.train=/data/LOL-v2/Real_captured \\
        --config.data.test=/data/LOL-v2/Real_captured \\
        --config.prior=/weights/imagenet256

1. Data: LOL-v2 (689 and 100 real pairs), folder `Real_captured`;
   `python -m difflid_jax.check_data /data/LOL-v2/Real_captured --dataset=lol_v2_real` checks the pairs.
2. Prior: OpenAI's 256x256_diffusion_uncond.pt, converted once by `python -m convert_weights.openai_ddpm`
   (--help gives its flags and the download).

Schedule: 18 steps per epoch (689 pairs, batch 40), 21,600 steps; 2e-4 halved every 300 of 1,200 epochs.
To time a step on your machine: `python scripts/benchmark.py train --config=configs/lol_v2_real.py`.

Expected score, from the paper: 22.35 dB PSNR, 0.874 SSIM, 0.186 LPIPS, 42.49 FID; not reproduced here yet.
"""

from difflid_jax.config import schema


def get_config():
    """The paper's settings; data and prior are given on the command line."""
    config = schema.default()
    config.prior = ""
    config.data.dataset = "lol_v2_real"
    config.training.log_every = 50
    config.training.evaluate_every = 1800
    config.training.checkpoint_every = 1800
    return config
