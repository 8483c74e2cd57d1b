"""What a user has on disk, turned into batches: reading, regions, quality, splits, statistics, windows."""
