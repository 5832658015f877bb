"""The names of the data sets that loglik knows, without their readers."""

from __future__ import annotations

__all__ = ["names"]


def names() -> dict[str, str]:
    """Return each name that `load` knows, with one line on the data set.

    >>> list(names())
    ['digits', 'fashion-mnist', 'breast-cancer', 'wine', 'diabetes']
    """
    return {
        "digits": "1,797 handwritten digits, 8×8, 17 grey levels, 10 classes (with scikit-learn)",
        "fashion-mnist": "70,000 pictures of clothes, 28×28, 256 grey levels, 10 classes (Debian's package)",
        "breast-cancer": "569 tumours, 30 measurements, 2 classes (with scikit-learn)",
        "wine": "178 wines, 13 measurements, 3 classes (with scikit-learn)",
        "diabetes": "442 patients, 11 measurements, no classes (with scikit-learn)",
    }
