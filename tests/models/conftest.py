"""PyTorch beside these tests, and beside those of other workers."""

import torch

# Two workers with two threads each wait for one another.
torch.set_num_threads(1)
