"""The laboratory: data, networks, runs that are compared, reports and pictures."""
