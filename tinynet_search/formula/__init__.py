"""The frontier, the tiny formula with r(c) and d(c) as Gaussian processes, and its networks.

Called by searches and by ``tinynet suggest`` and ``tinynet baselines``. Does not import torch.
"""
