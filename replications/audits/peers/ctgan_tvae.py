"""Fits ctgan's TVAE to the irises, and writes it with its loss at the fitted parameters.

The package drops its encoder after the fit. Here a reference to the encoder is kept.
"""

import sys

import numpy as np
import torch
from ctgan.synthesizers import tvae
from sklearn.datasets import load_iris

kept = []
made = tvae.Encoder.__init__


def make_and_keep(self: tvae.Encoder, *sizes: int) -> None:
    """Calls the constructor, and keeps a reference to the encoder."""
    made(self, *sizes)
    kept.append(self)


torch.manual_seed(0)
torch.set_num_threads(1)
tvae.Encoder.__init__ = make_and_keep
table = load_iris(as_frame=True).frame
table["target"] = table["target"].map(str)
model = tvae.TVAE(4, (32, 32), (32, 32), batch_size=50, epochs=200, enable_gpu=False)
model.set_random_state(0)
model.fit(table, ["target"])
rows = torch.as_tensor(model.transformer.transform(table).astype("float32"))
spans = [span for column in model.transformer.output_info_list for span in column]
with torch.no_grad():
    mean, scale, log_variance = kept[0](rows)
    losses = []
    for _ in range(400):
        decoded, sigma = model.decoder(mean + scale * torch.randn_like(scale))
        parts = tvae._loss_function(
            decoded, rows, sigma, mean, log_variance, model.transformer.output_info_list, 2
        )
        losses.append(float(sum(parts)))
np.savez(
    sys.argv[1],
    rows=rows,
    mean=mean,
    scale=scale,
    losses=losses,
    sizes=[span.dim for span in spans],
    is_number=[span.activation_fn != "softmax" for span in spans],
    sigma=sigma.detach(),
    **{f"decoder.{name}": part for name, part in model.decoder.seq.state_dict().items()},
)
