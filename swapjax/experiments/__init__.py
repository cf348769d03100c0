"""The laboratory: data, networks, runs that are compared, reports and pictures."""

from swapjax.core import extras

extras.require("experiments", "swapjax.experiments")
