"""What the CUDA backend computes with: `face` says what there is, `torch_ops` gives it in plain torch."""
