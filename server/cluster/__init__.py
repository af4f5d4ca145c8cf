"""Many instances with the same documents: what they share by Redis."""
