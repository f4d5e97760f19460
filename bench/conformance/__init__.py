"""Whether a layer computes what it should, in every way that it is called: `moebench check`."""
