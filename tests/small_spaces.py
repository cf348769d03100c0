"""The images that the tests of small search spaces take."""

SHAPE, CLASSES = (8, 8, 1), 3
