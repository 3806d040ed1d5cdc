"""Files in, a verified IHE PDI patient disc out; and a disc in, an accounted list of files out. Pure Python."""
