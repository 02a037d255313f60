"""The dehazing network (paper, Sec. 4.2). It receives two feature maps and knows nothing of diffusion."""
