"""What somebody should look at, told once: from errors that are counted, and from health.

`errors.py` groups and counts, `conditions.py` says what is wrong now, `book.py` decides what is
told of it, `webhook.py` and `sentry.py` carry it out of the house, `watch.py` puts them together.
"""
