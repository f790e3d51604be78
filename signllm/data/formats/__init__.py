"""One module per dataset format; each reads the annotations of a dataset as it was delivered."""
