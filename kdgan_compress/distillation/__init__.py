"""P-KDGAN: loss sets, feature hooks, the distillation loss, one training step, the progressive scheduler."""
