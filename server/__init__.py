"""The edge: sockets, HTTP, storage, configuration. The only place where the parts meet."""
