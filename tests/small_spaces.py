"""The images that the tests of small search spaces take, and how these compile."""

SHAPE, CLASSES = (8, 8, 1), 3
HASTY = {"xla_backend_optimization_level": 0}
