"""Places outside the region that images are brought to and fetched from by what they speak themselves."""
