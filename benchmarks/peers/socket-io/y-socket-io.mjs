// y-socket.io's own server on socket.io, no persistence: the protocol that RepSync speaks as well.
import { createServer } from 'node:http'
import { Server } from 'socket.io'
import { YSocketIO } from 'y-socket.io/dist/server'

const http = createServer()
const io = new Server(http, { transports: ['websocket'] })
new YSocketIO(io).initialize()
http.listen(+process.env.PORT, '127.0.0.1', 2048)
