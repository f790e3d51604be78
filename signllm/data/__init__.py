"""From a dataset to WebDataset shards, and from shards to the batches of every rank."""
