"""Sites of the region and who belongs to them."""
