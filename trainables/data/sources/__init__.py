"""Encoded images where users have them: folders, ImageNet's tar files, Parquet shards."""
