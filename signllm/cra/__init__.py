"""CRA, first half: characters become words by optimal transport (design 2.2)."""
