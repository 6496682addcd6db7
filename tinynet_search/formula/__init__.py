"""The frontier, r(c) and d(c) as Gaussian processes, the tiny formula and its networks; no torch."""
