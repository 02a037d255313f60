"""The frozen diffusion model: noise schedules, the ADM U-Net of OpenAI's checkpoints, losses, sampling."""
