"""One thread for torch: small products are quicker so, and other tests run beside."""

import importlib.util

if importlib.util.find_spec("torch"):
    import torch

    torch.set_num_threads(1)
