"""The paper's subset of ImageNet: drawn from a seed or given by a list, copied from any source."""
