// hocuspocus with its defaults, no database extension.
import { Server } from '@hocuspocus/server'

const server = new Server({ port: +process.env.PORT, address: '127.0.0.1', quiet: true })
await server.listen()
