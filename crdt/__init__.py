"""Documents, admission, ordering, presence and rooms: plain objects without I/O."""
