"""Socket.IO over aiohttp, hardened: what stands between the network and the gateway.

`packets` says what may come in and frames what goes out, `websocket` moves frames, `connection` is
one client with its budget and its inbox, `namespaces` keeps who is in which namespace, `server`
ties them to the door of the application.
"""
