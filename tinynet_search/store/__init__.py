"""Directories of searches and training jobs: their files, validated on reading, and their lease."""
