"""One class of a network with classes: what is refused without them, and the examples of one class."""

from __future__ import annotations

from dataclasses import replace

from sde_toolkit.data import Dataset
from sde_toolkit.models import ScoreModel


def need_classes(model: ScoreModel) -> None:
    """Refuse a model without classes with a ValueError."""
    if model.num_classes == 0:
        raise ValueError(
            "a class needs a network with classes, got one without; train one with --config=digits_classes, "
            "or set --config.model.num_classes"
        )


def examples_of_class(dataset: Dataset, label: int | None) -> Dataset:
    """The data set with the examples of one class; all of them for None.

    Raises:
        ValueError: data without labels, or without examples of this class.
    """
    if label is None:
        return dataset
    if dataset.labels_train is None or dataset.labels_test is None:
        raise ValueError(f"label must be left out for data without labels, got {label} for {dataset.name!r}")
    train, test = dataset.labels_train == label, dataset.labels_test == label
    if not (train.any() and test.any()):
        known = sorted(set(dataset.labels_train.tolist()) & set(dataset.labels_test.tolist()))
        raise ValueError(f"label must be a class of the data {dataset.name!r}, one of {known}, got {label}")
    return replace(
        dataset,
        train=dataset.train[train],
        test=dataset.test[test],
        labels_train=dataset.labels_train[train],
        labels_test=dataset.labels_test[test],
    )


def class_suffix(label: int | None) -> str:
    """What the name of a file says of the class; nothing for None."""
    return "" if label is None else f"-class{label}"
