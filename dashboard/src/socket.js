// The server's event stream, `/` of Socket.IO v4 over one websocket. All that the page watches comes
// through it: browsers open six HTTP connections to a host, for all tabs together, and each stream
// over SSE would hold one.
//
// It comes back by itself, at growing intervals, until the server refuses the token.

const FIRST_DELAY_MS = 500
const LONGEST_DELAY_MS = 15_000
const SILENCE_MS = 12_000 // as long without a word, and the connection is given up

const OPEN = '0'
const PING = '2'
const PONG = '3'
const CONNECTED = '40'
const DISCONNECTED = '41'
const EVENT = '42'
const ACK = '43'
const REFUSED = '44'

export class EventSocket {
  // `on.event(name, payload)`, `on.refused(error)`: the server's error object, nothing is tried any
  // more; `on.away(retryAt, why)`: connection lost, tried again at `retryAt` (ms).
  constructor (token, on) {
    this.heardAt = Date.now()
    this.retryAt = 0
    this._token = token
    this._on = on
    this._acks = new Map()
    this._nextAck = 1
    this._failures = 0
    this._isWanted = true
    this._draining_ms = null
    this._soon = () => { if (this._retry && navigator.onLine) this._connect() }
    addEventListener('online', this._soon)
    this._connect()
  }

  // The ack of an event. Rejects when it is refused, and when the connection ends first.
  ask (event, payload) {
    return new Promise((resolve, reject) => {
      const id = this._nextAck++
      this._acks.set(id, { resolve, reject })
      this._send(EVENT + id + JSON.stringify([event, payload]))
    })
  }

  close () {
    this._isWanted = false
    removeEventListener('online', this._soon)
    this._hangUp()
  }

  _connect () {
    this._hangUp()
    this.heardAt = Date.now()
    const socket = this._socket = new WebSocket(
      `${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/socket.io/?EIO=4&transport=websocket`
    )
    socket.onmessage = ({ data }) => { if (socket === this._socket) this._receive(data) }
    socket.onclose = () => { if (socket === this._socket) this._lost() }
    this._watch = setInterval(() => {
      if (Date.now() - this.heardAt > SILENCE_MS) this._lost()
    }, 1_000)
  }

  _hangUp () {
    clearTimeout(this._retry)
    clearInterval(this._watch)
    this._retry = null
    const socket = this._socket
    this._socket = null
    socket?.close()
    for (const { reject } of this._acks.values()) reject(new Error('the connection has ended'))
    this._acks.clear()
  }

  _lost (why) {
    this._hangUp()
    if (!this._isWanted) return
    const longest = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** this._failures++)
    // Not all at once: a server that comes back has other things to do first.
    const delay = this._draining_ms ?? longest * (0.5 + Math.random() / 2)
    this._draining_ms = null
    this.retryAt = Date.now() + delay
    this._retry = setTimeout(() => this._connect(), delay)
    this._on.away(why)
  }

  _send (text) {
    if (this._socket?.readyState === WebSocket.OPEN) this._socket.send(text)
  }

  _receive (text) {
    this.heardAt = Date.now()
    if (text === PING) this._send(PONG)
    else if (text.startsWith(OPEN)) {
      this._send(CONNECTED + JSON.stringify({ token: this._token, device: { id: 'dashboard', name: 'Dashboard' } }))
    } else if (text.startsWith(EVENT)) {
      const [name, payload] = JSON.parse(text.slice(EVENT.length))
      if (name === 'welcome') this._failures = 0
      if (name === 'server:draining') this._draining_ms = payload.reconnect_in_ms
      if (name === 'auth:expired' || name === 'auth:revoked') this._refuse(payload)
      else this._on.event(name, payload)
    } else if (text.startsWith(ACK)) {
      const at = text.indexOf('[')
      const id = Number(text.slice(ACK.length, at))
      const waiting = this._acks.get(id)
      this._acks.delete(id)
      const [answer] = JSON.parse(text.slice(at))
      if (answer.ok) waiting?.resolve(answer)
      else waiting?.reject(new Error(answer.error.message))
    } else if (text.startsWith(REFUSED)) {
      const { message, data } = JSON.parse(text.slice(REFUSED.length))
      const error = data ?? { code: message, message }
      if (error.retryable) this._lost(error.message)
      else this._refuse(error)
    } else if (text.startsWith(DISCONNECTED)) this._lost()
  }

  _refuse (error) {
    this.close()
    this._on.refused(error)
  }
}
