"""What can be wrong with a cluster, found before a run starts on it: sizes, images, storage."""
