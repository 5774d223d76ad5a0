"""A scikit-learn model to import: handwritten digits (8 x 8 pixels, bundled with scikit-learn), a random forest.

headgate models import py:examples/digits.py:model --id digits --task infer --backend onnx
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

SEED = 7


def data() -> tuple[Any, Any, Any, Any]:
    """Training pixels, held-out pixels, training labels, held-out labels; always the same split."""
    digits = load_digits()
    # float32, because that is what a caller sends: the converted model takes the type of the samples.
    pixels = digits.data.astype(np.float32)
    return tuple(train_test_split(pixels, digits.target, test_size=0.25, random_state=SEED))


def model() -> tuple[Any, Any]:
    """A trained forest and the held-out pixels, on which the conversion is measured."""
    train, held_out, labels, _ = data()
    return RandomForestClassifier(n_estimators=100, random_state=SEED).fit(train, labels), held_out
