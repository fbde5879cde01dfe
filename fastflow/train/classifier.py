"""Features for comparing samples with real data, learned from the real data alone."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.random import permutation
from .data import Samples
from .purposes import Purpose, seeded_initialisation

Features = Callable[[Tensor], Tensor]

_NUM_FEATURES = 64
_EPOCHS = 40
_BATCH = 64


class Classifier(nn.Module):
    """A small convolutional classifier for images ``[B, C, H, W]`` of any size."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(64 * 16, _NUM_FEATURES),
            nn.GELU(),
        )
        self.head = nn.Linear(_NUM_FEATURES, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]``."""
        return self.head(self.body(x))

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Return the activations of the last hidden layer, ``[B, 64]``."""
        return torch.cat([self.body(part) for part in x.split(1000)])

    @torch.no_grad()
    def accuracy(self, samples: Samples) -> float:
        """Return the fraction of samples whose predicted class is their label."""
        predicted = self.head(self.features(samples.x)).argmax(dim=1)
        return float((predicted == samples.y).double().mean())


def train_classifier(samples: Samples, num_classes: int, seed: int) -> Classifier:
    """Fit a classifier to labelled samples. The result is a function of the samples and the seed."""
    assert samples.y is not None
    with seeded_initialisation(seed):
        model = Classifier(samples.x.shape[1], num_classes)
    steps = _EPOCHS * -(-len(samples) // _BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for epoch in range(_EPOCHS):
        for index in permutation(len(samples), seed, Purpose.CLASSIFIER.at(epoch)).split(_BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(samples.x[index]), samples.y[index], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def principal_components(x: Tensor) -> Features:
    """Return features for data without labels: its first 64 principal components, in the scale of the data."""
    flat = x.flatten(1).double()
    mean = flat.mean(dim=0)
    basis = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:_NUM_FEATURES]
    return lambda samples: (samples.flatten(1).double() - mean) @ basis.mT
