"""Which classes are taken for which, for data sets that papers on wrong labels use."""

from collections.abc import Mapping
from types import MappingProxyType

# The superclass of each of the 100 classes of CIFAR-100, as its files number them.
_SUPERCLASSES = (
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11),
    *(6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5),
    *(5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17),
    *(10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13),
    *(16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
)


def _next_within(groups: tuple[int, ...]) -> dict[int, int]:
    """Map each class to the next one of its group, and the last to the first."""
    found: dict[int, int] = {}
    for group in set(groups):
        members = [label for label, other in enumerate(groups) if other == group]
        found |= dict(zip(members, members[1:] + members[:1], strict=True))
    return dict(sorted(found.items()))


LABEL_MAPS: Mapping[str, Mapping[int, int]] = MappingProxyType(
    {
        "mnist": MappingProxyType({7: 1, 2: 7, 5: 6, 6: 5, 3: 8}),
        "cifar10": MappingProxyType({9: 1, 2: 0, 3: 5, 5: 3, 4: 7}),
        "cifar100": MappingProxyType(_next_within(_SUPERCLASSES)),
    }
)
"""Asymmetric noise by data set: what a class is taken for, of classes that look alike.

The maps of Patrini et al. (CVPR 2017, arXiv:1609.03683): 7 for 1, 2 for 7, 5 and 6 for
each other and 3 for 8 in MNIST; a truck for a car, a bird for a plane, a deer for a
horse, cat and dog for each other in CIFAR-10; each class for the next of its superclass
in CIFAR-100.
"""
