"""Published selectors, to compare with: each is written from its paper, and none knows the others."""
