"""Which degraded image belongs to which clean one."""
