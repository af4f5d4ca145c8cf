// Templates that people edit together: stock y-socket.io providers, each with its own replica.

import assert from 'node:assert/strict'
import { io } from 'socket.io-client'
import * as Y from 'yjs'
import {
  connect, content, converged, listed, provider, pull, resynced, send, synced, tokens, until,
  updatesOf, url
} from './lib.mjs'

/** A template of Ana's that Ben may edit and Cleo may look at. Returns Ana's device and the room. */
async function shared (transports) {
  const ana = await connect('ana', transports)
  const template_id = (await ana.do('template:create', { title: 'Push day' })).template.id
  await ana.do('template:share', { template_id, user_id: 'ben', role: 'editor' })
  await ana.do('template:share', { template_id, user_id: 'cleo', role: 'viewer' })
  return { ana, template_id, room: `template:${template_id}` }
}

function addExercise (doc, id, fields = {}) {
  const exercise = new Y.Map()
  doc.transact(() => {
    doc.getMap('exercises').set(id, exercise)
    exercise.set('name', `Exercise ${id}`)
    exercise.set('order', 'a0')
    exercise.set('note', new Y.Text())
    exercise.set('sets', new Y.Map())
    for (const [key, value] of Object.entries(fields)) exercise.set(key, value)
  })
}

const exercise = (doc, id) => doc.getMap('exercises').get(id)
const note = (doc, id) => exercise(doc, id).get('note')
const sets = (doc, id) => exercise(doc, id).get('sets')

function addSet (doc, id, setId, fields) {
  sets(doc, id).set(setId, new Y.Map(Object.entries({ kind: 'normal', order: 'a0', ...fields })))
}

/** What JSON clients are shown of this replica. */
function asShown (template_id, doc) {
  const { meta, exercises, notes } = content(doc)
  return {
    id: template_id,
    goal: null,
    difficulty: null,
    forked_from: null,
    ...meta,
    notes,
    exercises: listed(exercises).map((item) => ({ ...item, sets: listed(item.sets) }))
  }
}

async function expectShown (device, template_id, doc) {
  const { template: { version, ...rest } } = await device.do('template:get', { template_id })
  assert.ok(Number.isInteger(version))
  assert.deepEqual(rest, asShown(template_id, doc))
}

export async function twoTrainersTypeIntoOneNote () {
  const { ana, template_id, room } = await shared()
  const [a, b] = [await synced('ana', room), await synced('ben', room)]
  await ana.do('template:join', { template_id })
  addExercise(a.doc, 'bench', { rest_s: 90 })
  addSet(a.doc, 'bench', 's1', { reps: 5, weight_kg: 62.5, rpe: 8 })
  await until(() => exercise(b.doc, 'bench'))
  const changed = await ana.next('template:changed', (e) => e.exercises?.bench?.sets?.length === 1)
  assert.equal(changed.template_id, template_id)

  // Ana types at the front while Ben types at the end, letter by letter.
  const [front, end] = [[...'Elbows in — 🏋️ '], [...' then rest, “brüh” 日本']]
  let at = 0
  for (let i = 0; i < Math.max(front.length, end.length); i++) {
    note(a.doc, 'bench').insert(at, front[i] ?? '')
    at += front[i]?.length ?? 0
    note(b.doc, 'bench').insert(note(b.doc, 'bench').length, end[i] ?? '')
    if (i % 5 === 0) await pull(b)
  }
  a.doc.getText('notes').insert(0, 'Week 1\n')
  sets(b.doc, 'bench').get('s1').set('reps', 8)
  sets(a.doc, 'bench').get('s1').set('weight_kg', 65)
  addSet(b.doc, 'bench', 's2', { order: 'a1', seconds: 30.5 })
  await converged(a.doc, b.doc)
  assert.equal([...note(a.doc, 'bench').toString()].sort().join(''), [...front, ...end].sort().join(''))
  await until(async () => (await ana.do('template:get', { template_id })).template.notes === 'Week 1\n')
  await expectShown(ana, template_id, a.doc)
}

export async function aProviderThatSaysItIsSyncedHasTheDocument () {
  const { room } = await shared()
  const a = await synced('ana', room)
  addExercise(a.doc, 'bench', { rest_s: 90 })
  await until(async () => { await pull(a); return exercise(a.doc, 'bench') })
  for (let i = 0; i < 5; i++) {
    const late = provider('ben', room)
    await new Promise((resolve) => late.on('sync', (isSynced) => isSynced && resolve()))
    assert.ok(exercise(late.doc, 'bench'), 'synced, and nothing there')
  }
}

export async function editsMadeOfflineOnBothSidesConverge () {
  const { ana, template_id, room } = await shared()
  const [a, b] = [await synced('ana', room), await synced('ben', room)]
  addExercise(a.doc, 'bench')
  addExercise(a.doc, 'dips', { order: 'a1' })
  note(a.doc, 'bench').insert(0, 'slow and steady')
  await converged(a.doc, b.doc)

  a.disconnect()
  b.disconnect()
  assert.ok(!a.socket.connected && !b.socket.connected)
  note(a.doc, 'bench').insert(0, 'Go ')
  note(a.doc, 'bench').delete(note(a.doc, 'bench').length - 6, 6)
  a.doc.getMap('exercises').delete('dips')
  a.doc.getMap('meta').set('title', "Ana's push day")
  note(b.doc, 'bench').insert(note(b.doc, 'bench').length, ', always')
  addSet(b.doc, 'bench', 's1', { reps: 12 })
  addSet(b.doc, 'dips', 's1', { reps: 20 })
  addExercise(b.doc, 'flies', { order: 'a2' })
  await ana.do('template:update_meta', { template_id, meta: { goal: 'strength' } })
  a.connect()
  b.connect()
  await Promise.all([resynced(a), resynced(b)])
  await converged(a.doc, b.doc)
  assert.equal(note(a.doc, 'bench').toString(), 'Go slow and , always')
  assert.deepEqual(Object.keys(content(a.doc).exercises).sort(), ['bench', 'flies'])
  assert.equal(a.doc.getMap('meta').get('goal'), 'strength')
  await until(async () => (await ana.do('template:get', { template_id })).template.exercises.length === 2)
  await expectShown(ana, template_id, a.doc)
  assert.deepEqual([a.rejections, b.rejections], [[], []])
}

export async function aLostConnectionComesBackByItself () {
  const { ana, template_id, room } = await shared()
  const [a, b] = [await synced('ana', room), await synced('ben', room)]
  for (let round = 0; round < 3; round++) {
    // Bad Wi-Fi: the transport is gone, nobody said goodbye.
    a.socket.io.engine.close()
    addExercise(a.doc, `a${round}`)
    addExercise(b.doc, `b${round}`)
    await until(() => a.socket.connected)
    note(a.doc, `a${round}`).insert(0, 'back')
    await converged(a.doc, b.doc)
  }
  await expectShown(ana, template_id, a.doc)
}

export async function documentsCanBeEditedOverLongPolling () {
  const { ana, template_id, room } = await shared({ transports: ['polling'] })
  const polling = await synced('ana', room, { socket: { transports: ['polling'] } })
  const upgrading = await synced('ben', room, { socket: { transports: ['polling', 'websocket'] } })
  addExercise(polling.doc, 'bench')
  await until(() => exercise(upgrading.doc, 'bench'))
  for (let i = 0; i < 30; i++) {
    note(polling.doc, 'bench').insert(0, 'p')
    note(upgrading.doc, 'bench').insert(0, 'u')
    await pull(polling)
  }
  await converged(polling.doc, upgrading.doc)
  assert.equal(note(polling.doc, 'bench').length, 60)
  await until(() => upgrading.socket.io.engine.transport.name === 'websocket')
  assert.equal(polling.socket.io.engine.transport.name, 'polling')
  await expectShown(ana, template_id, polling.doc)
}

export async function aBurstOfEditsOverLongPollingArrives () {
  const { ana, template_id, room } = await shared({ transports: ['polling'] })
  const [a, b] = [await synced('ana', room, { socket: { transports: ['polling'] } }), await synced('ben', room)]
  // Typed faster than requests come back: they go out together, in one request.
  for (let i = 0; i < 200; i++) a.doc.getText('notes').insert(i, `${i % 10}`)
  await until(() => b.doc.getText('notes').length === 200, '200 letters typed over long polling')
  const meta = Array.from({ length: 100 }, (_, i) => ({ goal: `${i}` }))
  await Promise.all(meta.map((changes) => ana.do('template:update_meta', { template_id, meta: changes })))
  await until(() => a.doc.getMap('meta').get('goal') === '99')
  await converged(a.doc, b.doc)
}

export async function aLargeEditOverLongPollingArrives () {
  const { ana, template_id, room } = await shared()
  const [a, b] = [await synced('ana', room, { socket: { transports: ['polling'] } }), await synced('ben', room)]
  a.doc.getText('notes').insert(0, 'x'.repeat(1_000_000))
  await until(() => b.doc.getText('notes').length === 1_000_000, 'a million letters over long polling')
  await converged(a.doc, b.doc)
  await expectShown(ana, template_id, a.doc)
}

export async function oneConnectionCarriesEventsAndDocument () {
  const { ana, template_id, room } = await shared()
  const other = await synced('ben', room)
  // With forceNew off, socket.io-client puts both namespaces onto one connection.
  const plain = io(url, { auth: { token: tokens.ana } })
  const events = []
  plain.onAny((name, payload) => events.push([name, payload]))
  const editor = provider('ana', room, { socket: { forceNew: false, transports: undefined } })
  assert.equal(editor.socket.io, plain.io, 'one manager, one connection')
  await resynced(editor)
  await plain.emitWithAck('template:join', { template_id })
  addExercise(editor.doc, 'bench')
  await converged(editor.doc, other.doc)
  await until(() => events.some(([name, e]) => name === 'template:changed' && e.exercises?.bench))
  editor.disconnect()
  assert.equal((await plain.emitWithAck('template:get', { template_id })).ok, true)
  await until(() => other.awareness.getStates().size === 1)
  await expectShown(ana, template_id, other.doc)
  plain.disconnect()
}

export async function everybodySeesWhoIsHere () {
  const { room } = await shared()
  const [a, b, c] = [await synced('ana', room), await synced('ben', room), await synced('cleo', room)]
  const stateOf = (seer, seen) => seer.awareness.getStates().get(seen.doc.clientID)
  a.awareness.setLocalState({ user: { id: 'mallory', name: 'Root', color: '#f00' }, cursor: { at: 3 } })
  b.awareness.setLocalStateField('user', { name: 'Nobody' })
  c.awareness.setLocalState({ hr: 152 })
  for (const seer of [b, c]) {
    const seen = await until(() => stateOf(seer, a)?.user?.id && stateOf(seer, a))
    assert.deepEqual(seen, { user: { id: 'ana', name: 'Ana', color: '#f00' }, cursor: { at: 3 } })
  }
  for (const seer of [a, c]) {
    const seen = await until(() => stateOf(seer, b)?.user?.id && stateOf(seer, b))
    assert.deepEqual(seen.user, { id: 'ben', name: 'Ben' })
  }
  await until(() => stateOf(a, c)?.hr === 152 && stateOf(b, c)?.hr === 152, 'a viewer is seen as well')
  assert.deepEqual(stateOf(a, c).user, { id: 'cleo', name: 'Cleo' })

  const late = await synced('ben', room)
  await until(() => stateOf(late, a) && stateOf(late, b) && stateOf(late, c), 'a newcomer sees all')
  late.destroy()

  a.awareness.setLocalState(null)
  await until(() => !stateOf(b, a) && !stateOf(c, a), 'Ana to be hidden', 2_000)
  a.awareness.setLocalState({ cursor: { at: 9 } })
  await until(() => stateOf(b, a)?.cursor.at === 9 && stateOf(c, a)?.cursor.at === 9)
}

export async function whoLeavesIsGoneAndWhoComesBackSeesTheOthers () {
  const { room } = await shared()
  const [a, b, c] = [await synced('ana', room), await synced('ben', room), await synced('cleo', room)]
  const stateOf = (seer, seen) => seer.awareness.getStates().get(seen.doc.clientID)
  const flicker = []
  c.awareness.on('change', ({ removed }) => flicker.push(...removed))
  for (const [at, one] of [a, b, c].entries()) one.awareness.setLocalState({ cursor: { at } })
  await until(() => [a, b, c].every((one) => one.awareness.getStates().size === 3))

  // A lost link and a goodbye: both are noticed within two seconds.
  for (const leave of [() => b.socket.io.engine.close(), () => b.disconnect()]) {
    leave()
    await until(() => !stateOf(a, b) && !stateOf(c, b), 'Ben to be gone', 2_000)
    b.connect()
    await until(() => b.socket.connected)
    await until(() => stateOf(a, b)?.user?.id === 'ben' && stateOf(c, b), 'Ben to be seen', 2_000)
    await until(() => stateOf(b, a)?.cursor && stateOf(b, c)?.cursor, 'Ben to see the others', 2_000)
  }
  a.awareness.setLocalStateField('cursor', { at: 7 })
  await until(() => stateOf(b, a)?.cursor.at === 7 && stateOf(c, a)?.cursor.at === 7)
  assert.ok(!flicker.includes(a.doc.clientID), "Ben's comings and goings never hid Ana from Cleo")
}

export async function aViewerSeesEverythingAndChangesNothing () {
  const { ana, template_id, room } = await shared()
  const editor = await synced('ana', room)
  addExercise(editor.doc, 'bench')
  addExercise(editor.doc, 'dips')
  note(editor.doc, 'bench').insert(0, 'abcdefgh')
  note(editor.doc, 'bench').delete(2, 3)
  editor.doc.getMap('exercises').delete('dips')
  editor.doc.getText('notes').insert(0, 'Week 1')
  editor.doc.getText('notes').delete(0, 5)
  await pull(editor)

  const viewer = await synced('cleo', room)
  await converged(editor.doc, viewer.doc)
  assert.equal(note(viewer.doc, 'bench').toString(), 'abfgh')
  // Coming back answers the server's sync with all deletions again.
  viewer.disconnect()
  note(editor.doc, 'bench').delete(0, 1)
  viewer.connect()
  await resynced(viewer)
  await converged(editor.doc, viewer.doc)
  assert.deepEqual(viewer.rejections, [], 'a sync that brings nothing is no edit')

  const before = content(editor.doc)
  const attempts = {
    insertion: (doc) => note(doc, 'bench').insert(0, 'mine '),
    deletion: (doc) => doc.getMap('exercises').delete('bench'),
    'deletion of text': (doc) => note(doc, 'bench').delete(0, 2),
    overwriting: (doc) => doc.getMap('meta').set('title', 'Mine')
  }
  for (const [what, edit] of Object.entries(attempts)) {
    const intruder = await synced('cleo', room)
    const sent = new Promise((resolve) => intruder.socket.once('sync-rejected', resolve))
    edit(intruder.doc)
    const rejection = await sent
    assert.equal(rejection.code, 'forbidden', what)
    assert.equal(typeof rejection.message, 'string')
    const [asked] = updatesOf(intruder.doc, () => intruder.doc.getText('notes').insert(0, '!'))
    const answer = await send(intruder, asked)
    assert.equal(answer.ok, false, what)
    assert.equal(answer.error.code, 'forbidden', what)
    // Offline as well: the stock client sends it first thing when it is back.
    const count = intruder.rejections.length
    intruder.disconnect()
    intruder.doc.getText('notes').insert(0, '?')
    intruder.connect()
    await until(() => intruder.rejections.length > count, `${what} offline to be refused`)
    intruder.destroy()
  }

  const fresh = await synced('cleo', room)
  await converged(editor.doc, viewer.doc, fresh.doc)
  assert.deepEqual(content(editor.doc), before)
  await expectShown(ana, template_id, editor.doc)
  note(editor.doc, 'bench').insert(0, 'still live ')
  await converged(editor.doc, viewer.doc, fresh.doc)
}

export async function whoIsPutOutLeavesAtOnce () {
  const { ana, template_id, room } = await shared()
  const [a, b] = [await synced('ana', room), await synced('ben', room)]
  const gone = new Promise((resolve) => b.socket.once('disconnect', resolve))
  await ana.do('template:unshare', { template_id, user_id: 'ben' })
  assert.equal(await gone, 'io server disconnect')
  await until(() => !a.awareness.getStates().has(b.doc.clientID))
  const refused = new Promise((resolve) => b.socket.once('connect_error', resolve))
  b.socket.connect()
  assert.equal((await refused).message, 'forbidden')
}
