"""What `tools/fuzz` is made of: material, mutations of it, probes, and the children that run them."""
