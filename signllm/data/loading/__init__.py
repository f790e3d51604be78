"""From shards to the batches of a rank: order of the samples, mixtures, augmentation, prefetching."""
