"""Trains Pythae's VAE on binary digits, and writes it with the log-likelihoods it reports."""

import sys

import numpy as np
import torch
from pythae.models import VAE, VAEConfig
from sklearn.datasets import load_digits

IMAGES, REPEATS = 100, 8
torch.manual_seed(0)
torch.set_num_threads(1)
pixels = torch.as_tensor(load_digits().data > 7, dtype=torch.float32)
model = VAE(VAEConfig(input_dim=(64,), latent_dim=5, reconstruction_loss="bce"))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(30):
    for rows in torch.randperm(len(pixels)).split(100):
        optimizer.zero_grad()
        model({"data": pixels[rows]}).loss.backward()
        optimizer.step()
model.eval()
images = pixels[:IMAGES]
with torch.no_grad():
    encoded = model.encoder(images)
    reported = {
        f"reported_{asked}": [model.get_nll(images, asked, 100) for _ in range(REPEATS)]
        for asked in (1, 100)
    }
    losses = [float(model({"data": images}).loss) for _ in range(100)]
np.savez(
    sys.argv[1],
    images=images,
    mean=encoded.embedding,
    log_variance=encoded.log_covariance,
    losses=losses,
    **reported,
    **{f"decoder.{name}": part for name, part in model.decoder.state_dict().items()},
)
