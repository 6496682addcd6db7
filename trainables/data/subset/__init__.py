"""The paper's subset of ImageNet: drawn or listed, and copied from any source."""
