"""Data: any dataset → WebDataset shards → batches, each sample once per epoch on any number of ranks."""
