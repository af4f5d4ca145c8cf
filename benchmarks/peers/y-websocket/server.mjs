// @y/websocket-server's setupWSConnection on ws, which is what its own bin/server does.
import http from 'node:http'
import { createRequire } from 'node:module'
import { setupWSConnection } from '@y/websocket-server/utils'

const WebSocket = createRequire(import.meta.url)('ws')
const server = http.createServer()
const wss = new WebSocket.Server({ noServer: true })
wss.on('connection', setupWSConnection)
server.on('upgrade', (request, socket, head) =>
  wss.handleUpgrade(request, socket, head, (ws) => wss.emit('connection', ws, request)))
server.listen(+process.env.PORT, '127.0.0.1', 2048)
