"""Directories of searches and of training jobs: their files, checked when they are read, and their lease."""
