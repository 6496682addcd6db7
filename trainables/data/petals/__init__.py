"""The built-in data set: its images as arrays, and their loader."""
