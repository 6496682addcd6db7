"""Sources of encoded images: folders, ImageNet's tar files and Parquet shards."""
