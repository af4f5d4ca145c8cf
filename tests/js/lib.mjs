// What the scenarios share: connecting the stock clients, and waiting with a deadline.

import assert from 'node:assert/strict'
import { createInterface } from 'node:readline'
import { isDeepStrictEqual } from 'node:util'
import { io } from 'socket.io-client'
import { SocketIOProvider } from 'y-socket.io'
import * as Y from 'yjs'

export const url = process.env.REPSYNC_URL
export const tokens = JSON.parse(process.env.REPSYNC_TOKENS ?? '{}')

const PATIENCE_MS = 10_000
const LOOK_EVERY_MS = 5

const opened = []
const told = []

/** Resolves to the first truthy value of `condition`; throws when there is none in time. */
export async function until (condition, what = String(condition), patienceMs = PATIENCE_MS) {
  const deadline = Date.now() + patienceMs
  for (;;) {
    const value = await condition()
    if (value) return value
    if (Date.now() > deadline) throw new Error(`waited ${patienceMs} ms for: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS))
  }
}

/** Everything that the clients got so far, for the output of a scenario that failed. */
export function story () {
  const short = (value) => (JSON.stringify(value) ?? '').slice(0, 300)
  return told.slice(-80).map(([who, event, args]) => `  ${who} <- ${event} ${short(args)}`).join('\n')
}

export function closeAll () {
  for (const close of opened) close()
}

/** Asks the test that started this script for something, and waits until it is done. */
export async function askTest (wish) {
  console.log(`> ${wish}`)
  answers ??= createInterface({ input: process.stdin })[Symbol.asyncIterator]()
  const { value } = await answers.next()
  return value
}
let answers

/** A phone or a watch: one stock Socket.IO client on `/` that keeps every event it gets. */
export class Device {
  constructor (user, { token = tokens[user], device, ...options } = {}) {
    this.events = []
    this.socket = io(url, { auth: { token, ...(device && { device }) }, forceNew: true, ...options })
    record(this.socket, user)
    this.socket.onAny((name, payload) => this.events.push({ name, payload }))
    opened.push(() => this.socket.disconnect())
  }

  /** Sends an intent. Returns its ack, whatever it says. */
  async ask (event, ...args) {
    const answer = await this.socket.timeout(PATIENCE_MS).emitWithAck(event, ...args)
    assert.equal(typeof answer?.ok, 'boolean', `${event} was acked with ${JSON.stringify(answer)}`)
    return answer
  }

  /** Sends an intent that must succeed. */
  async do (event, data = {}) {
    const answer = await this.ask(event, data)
    assert.ok(answer.ok, `${event}: ${JSON.stringify(answer)}`)
    return answer
  }

  /** Sends an intent that must be refused. Returns the error object. */
  async refused (event, ...args) {
    return errorOf(await this.ask(event, ...args))
  }

  /** The first event of this name for which `where` holds, here already or still to come; it is
   * taken out of `events`. */
  async next (name, where = () => true) {
    const find = () => this.events.find((e) => e.name === name && where(e.payload))
    const found = await until(find, `${name} where ${where}`)
    this.events.splice(this.events.indexOf(found), 1)
    return found.payload
  }

  get transport () {
    return this.socket.io.engine.transport.name
  }
}

/** A connected and welcomed device. */
export async function connect (user, options) {
  const device = new Device(user, options)
  device.welcome = await device.next('welcome')
  return device
}

/** The connect error with which a namespace refuses an auth payload. */
export async function refusal (namespace, auth) {
  const socket = io(url + namespace, { auth, forceNew: true, transports: ['websocket'] })
  opened.push(() => socket.disconnect())
  const outcome = await until(await firstOf(socket), `an answer to connecting to ${namespace}`)
  assert.ok(outcome instanceof Error, `${namespace} let somebody in`)
  assert.equal(socket.active, false, 'a client must not try again by itself')
  return outcome
}

async function firstOf (socket) {
  let outcome = null
  socket.once('connect', () => { outcome = 'connected' })
  socket.once('connect_error', (error) => { outcome = error })
  return () => outcome
}

/** The error object of an ack, checked for its shape. */
export function errorOf (answer) {
  assert.equal(answer.ok, false, `should have been refused: ${JSON.stringify(answer)}`)
  assert.equal(typeof answer.error.code, 'string')
  assert.equal(typeof answer.error.message, 'string')
  assert.equal(typeof answer.error.retryable, 'boolean')
  return answer.error
}

/**
 * A stock y-socket.io provider with a replica of its own. Providers of one process would also sync
 * past the server, through a BroadcastChannel, as tabs of one browser do: that is switched off.
 */
export function provider (user, room, { token = tokens[user], doc = new Y.Doc(), socket = {} } = {}) {
  const made = new SocketIOProvider(url, room, doc, { auth: { token }, disableBc: true }, socket)
  made.rejections = []
  made.resets = []
  made.socket.on('sync-rejected', (payload) => made.rejections.push(payload))
  made.socket.on('sync-reset', (payload) => made.resets.push(payload))
  record(made.socket, `${user} (document)`)
  opened.push(() => made.destroy())
  return made
}

/** A provider that is connected and has all that the server has. */
export async function synced (user, room, options) {
  const made = provider(user, room, options)
  await resynced(made)
  return made
}

export async function resynced (made) {
  await until(() => made.synced, `${made.roomName} to sync`)
  await pull(made)
}

/** Fetches what is missing here. Events are answered in order, so the server has then looked at
 * everything that this provider sent before. */
export async function pull (made) {
  const vector = Y.encodeStateVector(made.doc)
  const update = await made.socket.timeout(PATIENCE_MS).emitWithAck('sync-step-1', vector)
  Y.applyUpdate(made.doc, new Uint8Array(update), made)
}

/** Sends a raw update. Returns its ack, whatever it says. */
export async function send (made, update) {
  return made.socket.timeout(PATIENCE_MS).emitWithAck('sync-update', update)
}

/** The updates that `edit` makes, one for each transaction. */
export function updatesOf (doc, edit) {
  const updates = []
  const note = (update) => updates.push(update)
  doc.on('update', note)
  edit()
  doc.off('update', note)
  return updates
}

/** A document as plain values. */
export function content (doc) {
  const maps = Object.fromEntries(
    ['meta', 'exercises', 'sets', 'timers'].map((root) => [root, doc.getMap(root).toJSON()])
  )
  return { ...maps, notes: doc.getText('notes').toString() }
}

/** Waits until these replicas hold the same, and lack nothing. */
export async function converged (...docs) {
  const state = (doc) => [content(doc), [...Y.decodeStateVector(Y.encodeStateVector(doc))].sort()]
  const same = () => docs.every((doc) => isDeepStrictEqual(state(doc), state(docs[0])))
  try {
    await until(same, 'the replicas to become equal')
  } catch (error) {
    docs.forEach((doc) => assert.deepEqual(content(doc), content(docs[0])))
    throw error
  }
  for (const doc of docs) {
    assert.equal(doc.store.pendingStructs, null)
    assert.equal(doc.store.pendingDs, null)
  }
}

/** What JSON clients are shown of a document's exercises or sets: a list in order, ids inside. */
export function listed (items) {
  return Object.entries(items)
    .map(([id, item]) => ({ ...item, id }))
    .sort((a, b) => (a.order < b.order || (a.order === b.order && a.id < b.id) ? -1 : 1))
}

function record (socket, who) {
  socket.onAny((event, ...args) => told.push([who, event, args]))
  socket.on('connect', () => told.push([who, 'connect', [socket.id]]))
  socket.on('connect_error', (error) => told.push([who, 'connect_error', [error.message]]))
  socket.on('disconnect', (reason) => told.push([who, 'disconnect', [reason]]))
}
