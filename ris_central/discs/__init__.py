"""Patient discs: ordered, built, verified."""
