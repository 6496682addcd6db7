"""The built-in data set: its images, held as arrays, and their loader."""
