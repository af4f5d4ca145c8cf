// socket.io with a Y.Doc for each room, as one writes it by hand: an update is merged into the
// document and relayed; the ack of a join is the document's state.
import { createServer } from 'node:http'
import { Server } from 'socket.io'
import * as Y from 'yjs'

const http = createServer()
const io = new Server(http, { perMessageDeflate: false, transports: ['websocket'] })
const docs = new Map()

function docOf(room) {
  if (!docs.has(room)) docs.set(room, new Y.Doc())
  return docs.get(room)
}

io.on('connection', (socket) => {
  socket.on('join', (room, ack) => {
    socket.join(room)
    ack?.(Buffer.from(Y.encodeStateAsUpdate(docOf(room))))
  })
  socket.on('update', (room, update) => {
    Y.applyUpdate(docOf(room), update)
    socket.to(room).emit('update', room, update)
  })
})
http.listen(+process.env.PORT, '127.0.0.1', 2048)
