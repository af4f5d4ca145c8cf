// Single updates and their acks: durable, refused, or lacking what they build on.

import assert from 'node:assert/strict'
import { Awareness, encodeAwarenessUpdate } from 'y-protocols/awareness'
import * as Y from 'yjs'
import {
  connect, content, converged, errorOf, pull, send, synced, until, updatesOf
} from './lib.mjs'

async function template () {
  const ana = await connect('ana')
  const template_id = (await ana.do('template:create', { title: 'Push day' })).template.id
  await ana.do('template:share', { template_id, user_id: 'ben', role: 'editor' })
  return { ana, template_id, room: `template:${template_id}` }
}

/** Edits a provider's replica while its updates get lost on the way. */
function editUnheard (editor, edit) {
  editor.doc.off('update', editor.onUpdateDoc)
  const updates = updatesOf(editor.doc, edit)
  editor.doc.on('update', editor.onUpdateDoc)
  return updates
}

export async function anUpdateIsAckedWhenItIsDurable () {
  const { ana, template_id, room } = await template()
  const [a, b] = [await synced('ana', room), await synced('ben', room)]
  const updates = editUnheard(a, () => {
    for (let i = 0; i < 5; i++) a.doc.getText('notes').insert(i, `${i}`)
  })
  const acks = await Promise.all(updates.map((update) => send(a, update)))
  let last = 0
  for (const ack of acks) {
    assert.deepEqual(Object.keys(ack).sort(), ['durability', 'ok', 'seq'])
    assert.equal(ack.ok, true)
    assert.equal(ack.durability, 'disk')
    assert.ok(Number.isInteger(ack.seq) && ack.seq >= last, `seq ${ack.seq} after ${last}`)
    last = ack.seq
  }
  await converged(a.doc, b.doc)
  assert.equal((await ana.do('template:get', { template_id })).template.version, last)
  const again = await send(a, updates[0])
  assert.deepEqual([again.ok, again.seq], [true, last], 'known already')
  assert.equal(b.doc.getText('notes').toString(), '01234')
}

export async function aFloodOfEditsArrivesSlowlyAndWhole () {
  const { ana, room } = await template()
  const [a, b] = [await synced('ana', room), await synced('ben', room)]
  for (let i = 0; i < 200; i++) a.doc.getText('notes').insert(i, `${i % 10}`)
  await until(() => b.doc.getText('notes').length === 200)
  await converged(a.doc, b.doc)
  assert.deepEqual([a.rejections, a.resets], [[], []])
  assert.equal(a.socket.connected, true)
  assert.equal((await ana.do('time:sync', { t0: 1 })).ok, true)
}

export async function whatIsNoUpdateIsRefused () {
  const { ana, template_id, room } = await template()
  const [a, b] = [await synced('ana', room), await synced('ben', room)]
  a.doc.getText('notes').insert(0, 'good')
  await converged(a.doc, b.doc)
  const other = new Y.Doc()
  other.getText('notes').insert(0, 'cut short')
  const whole = Y.encodeStateAsUpdate(other)
  const bad = [
    new Uint8Array([]),
    new Uint8Array([255, 255, 255, 255]),
    new Uint8Array([7, 1, 2, 3]),
    whole.subarray(0, whole.length - 3),
    whole.subarray(0, 8),
    'text',
    null,
    { update: 'object' },
    [1, 2, 3]
  ]
  for (const [i, update] of bad.entries()) {
    assert.equal(errorOf(await send(a, update)).code, 'invalid', `update ${i}`)
  }
  await until(() => a.rejections.length === bad.length)
  assert.ok(a.rejections.every((r) => r.code === 'invalid' && r.message))
  assert.ok(a.socket.connected)
  const vector = await a.socket.emitWithAck('sync-step-1', new Uint8Array([9, 9]))
  assert.equal(errorOf(vector).code, 'invalid')
  a.doc.getText('notes').insert(4, ' still')
  await converged(a.doc, b.doc)
  assert.equal((await ana.do('template:get', { template_id })).template.notes, 'good still')
}

export async function anUpdateWithoutItsPredecessorAsksForASync () {
  const { room } = await template()
  const [a, b] = [await synced('ana', room), await synced('ben', room)]
  const notes = a.doc.getText('notes')
  const [, second] = editUnheard(a, () => {
    notes.insert(0, 'first ')
    notes.insert(6, 'second')
  })
  const error = errorOf(await send(a, second))
  assert.equal(error.code, 'unsynced')
  assert.equal(error.retryable, true)
  // The stock provider answers the server's sync-step-1, and all its edits are there.
  await converged(a.doc, b.doc)
  assert.equal(b.doc.getText('notes').toString(), 'first second')
  await until(() => a.resets.length > 0, 'sync-reset')
  assert.equal(typeof a.resets[0].reason, 'string')
  assert.deepEqual(a.rejections, [], 'its replica is good')

  // The same without an ack, as the stock provider sends it: one packet lost, then typing goes on.
  editUnheard(a, () => notes.insert(0, 'lost '))
  for (const letter of 'abc') notes.insert(notes.length, letter)
  await converged(a.doc, b.doc)
  assert.equal(b.doc.getText('notes').toString(), 'lost first secondabc')
}

export async function anEditThatBuildsOnAnotherTabsUnsentEditArrives () {
  const { room } = await template()
  const [a, b] = [await synced('ana', room), await synced('ben', room)]
  // A tab without a link typed; this tab got that through the browser, and goes on from there.
  const tab = new Y.Doc()
  Y.applyUpdate(tab, Y.encodeStateAsUpdate(a.doc))
  tab.getText('notes').insert(0, 'from the other tab')
  Y.applyUpdate(a.doc, Y.encodeStateAsUpdate(tab), a)
  a.doc.getText('notes').insert(18, ', and from this one')
  await converged(a.doc, b.doc)
  assert.equal(b.doc.getText('notes').toString(), 'from the other tab, and from this one')
  // A deletion of what the server has never seen.
  tab.getText('notes').insert(0, 'XYZ ')
  Y.applyUpdate(a.doc, Y.encodeStateAsUpdate(tab), a)
  a.doc.getText('notes').delete(0, 2)
  await converged(a.doc, b.doc)
  assert.equal(b.doc.getText('notes').toString(), 'Z from the other tab, and from this one')
  assert.deepEqual(a.rejections, [])
}

export async function aReplicaThatLacksAPartItselfArrivesOnceItHasIt () {
  const { room } = await template()
  const [a, b] = [await synced('ana', room), await synced('ben', room)]
  a.disconnect()
  const tab = new Y.Doc()
  const [first, second] = updatesOf(tab, () => {
    tab.getText('notes').insert(0, 'first ')
    tab.getText('notes').insert(6, 'second')
  })
  // The other tab's second edit came through the browser, its first one did not.
  Y.applyUpdate(a.doc, second, a)
  a.connect()
  await until(() => a.resets.length > 0, 'sync-reset')
  for (let i = 0; i < 20; i++) await pull(a)
  assert.ok(a.resets.length < 5, `told to sync ${a.resets.length} times`)
  assert.equal(b.doc.getText('notes').toString(), '')
  Y.applyUpdate(a.doc, first, a)
  await converged(a.doc, b.doc)
  assert.equal(b.doc.getText('notes').toString(), 'first second')
  assert.deepEqual(a.rejections, [])
}

export async function anUpdateThatIsTooLargeIsRefusedAndTheConnectionLivesOn () {
  const { ana, template_id, room } = await template()
  const limit = ana.welcome.limits.max_update_bytes
  for (const transports of [['websocket'], ['polling']]) {
    const a = await synced('ana', room, { socket: { transports } })
    const { id } = a.socket
    const large = new Y.Doc()
    large.getText('notes').insert(0, 'x'.repeat(limit))
    const ack = await send(a, Y.encodeStateAsUpdate(large))
    assert.equal(errorOf(ack).code, 'too_large')
    const vector = await a.socket.emitWithAck('sync-step-1', new Uint8Array(limit + 1))
    assert.equal(errorOf(vector).code, 'too_large')
    await until(() => a.rejections.some((r) => r.code === 'too_large'))
    assert.equal((await send(a, updatesOf(a.doc, () => a.doc.getText('notes').insert(0, 'ok '))[0])).ok, true)
    assert.equal(a.socket.id, id)
    a.destroy()
  }
  // The largest that is allowed.
  const edge = await synced('ben', room)
  const most = new Y.Doc()
  most.getText('notes').insert(0, 'y'.repeat(limit - 64))
  const update = Y.encodeStateAsUpdate(most)
  assert.ok(update.length <= limit)
  assert.equal((await send(edge, update)).ok, true)
  await pull(edge)
  const { template: shown } = await ana.do('template:get', { template_id })
  assert.equal(shown.notes.length, edge.doc.getText('notes').length)
}

export async function whatOnlyIntentsMayChangeIsRefused () {
  const ana = await connect('ana')
  const workout_id = (await ana.do('workout:create', { title: 'Legs', mode: 'group' })).workout.id
  const room = `workout:${workout_id}`
  await ana.do('workout:start', { workout_id })
  for (const [key, value] of Object.entries({
    status: 'completed', started_at: 1, ended_at: 1, created_at: 1, active_ms: 1, owner_id: 'ben'
  })) {
    const editor = await synced('ana', room)
    const replica = new Y.Doc()
    Y.applyUpdate(replica, Y.encodeStateAsUpdate(editor.doc))
    const [refused] = updatesOf(replica, () => replica.transact(() => {
      replica.getMap('meta').set('title', 'Mine')
      replica.getMap('meta').set(key, value)
    }))
    assert.equal(errorOf(await send(editor, refused)).code, 'forbidden', key)
    const rejection = await until(() => editor.rejections[0])
    assert.equal(rejection.code, 'forbidden')
    // Without an ack: the stock provider's own edit is undone by dropping the replica.
    editor.doc.getMap('meta').set(key, value)
    await until(() => editor.rejections[1]?.code === 'forbidden')
    editor.destroy()
  }
  const fresh = await synced('ana', room)
  assert.equal(content(fresh.doc).meta.title, 'Legs')
  assert.equal(content(fresh.doc).meta.status, 'active')
  fresh.doc.getMap('meta').set('title', 'Heavy legs')
  await until(async () => (await ana.do('workout:sync', { workout_id })).workout.title === 'Heavy legs')
}

export async function aSetBelongsToTheOneWhoDidIt () {
  const [ana, ben] = [await connect('ana'), await connect('ben')]
  const workout_id = (await ana.do('workout:create', { mode: 'group', visibility: 'public' })).workout.id
  const room = `workout:${workout_id}`
  await ben.do('workout:join', { workout_id })
  await ana.do('workout:exercise:add', { workout_id, exercise_id: 'squat', exercise: { name: 'Squat' } })
  await ana.do('workout:set:complete', { workout_id, exercise_id: 'squat', set_id: 'anas', set: { reps: 5 } })
  const set = (user_id) => new Y.Map(Object.entries({
    user_id, exercise: 'squat', order: 'a0', kind: 'normal', reps: 8, completed_at: 1_700_000_000_000
  }))
  const forgeries = {
    'a set in her name': (sets) => sets.set('forged', set('ana')),
    'a change of her set': (sets) => sets.get('anas').set('reps', 50),
    'her set taken over': (sets) => sets.get('anas').set('user_id', 'ben'),
    'her set replaced': (sets) => sets.set('anas', set('ben')),
    'her set removed': (sets) => sets.delete('anas')
  }
  for (const [what, edit] of Object.entries(forgeries)) {
    const editor = await synced('ben', room)
    const replica = new Y.Doc()
    Y.applyUpdate(replica, Y.encodeStateAsUpdate(editor.doc))
    const [update] = updatesOf(replica, () => edit(replica.getMap('sets')))
    assert.equal((await send(editor, update)).error?.code, 'forbidden', what)
    editor.destroy()
  }
  const own = await synced('ben', room)
  own.doc.getMap('sets').set('bens', set('ben'))
  await ana.next('workout:set:completed', (e) => e.set_id === 'bens')
  const { workout } = await ana.do('workout:sync', { workout_id })
  assert.deepEqual(workout.sets.map((s) => [s.id, s.user_id, s.reps]).sort(), [['anas', 'ana', 5], ['bens', 'ben', 8]])
}

/** A group workout of ana's, in which ben is a participant, with a set of hers. */
async function groupWorkout () {
  const [ana, ben] = [await connect('ana'), await connect('ben')]
  const workout_id = (await ana.do('workout:create', { mode: 'group', visibility: 'public' })).workout.id
  await ben.do('workout:join', { workout_id })
  await ana.do('workout:exercise:add', { workout_id, exercise_id: 'squat', exercise: { name: 'Squat' } })
  return { ana, ben, workout_id, room: `workout:${workout_id}` }
}

/** What ben's own client, built on the real package, sends of an edit of his. */
function forged (from, edit, clientID) {
  const replica = new Y.Doc()
  Y.applyUpdate(replica, Y.encodeStateAsUpdate(from.doc))
  if (clientID !== undefined) replica.clientID = clientID
  return updatesOf(replica, () => replica.transact(() => edit(replica)))[0]
}

export async function aClientIdBelongsToTheOneWhoUsedItFirst () {
  const { ana, workout_id, room } = await groupWorkout()
  const laptop = await synced('ana', room)
  laptop.doc.getMap('sets').set('anas', new Y.Map([['user_id', 'ana'], ['reps', 5]]))
  await ana.next('workout:set:completed', (e) => e.set_id === 'anas')
  const editor = await synced('ben', room)
  const servers = [...Y.decodeStateVector(Y.encodeStateVector(editor.doc)).keys()]
  assert.ok(servers.includes(laptop.doc.clientID))
  const before = content(laptop.doc)
  for (const clientID of servers) {
    const own = (doc) => doc.getMap('sets').set('bens', new Y.Map([['user_id', 'ben'], ['reps', 8]]))
    const { error } = await send(editor, forged(editor, own, clientID))
    assert.equal(error?.code, 'forbidden', `client ID ${clientID}`)
    const mixed = Y.mergeUpdates([forged(editor, own), forged(editor, own, clientID)])
    assert.equal((await send(editor, mixed)).error?.code, 'forbidden', `mixed with ${clientID}`)
  }
  await until(() => editor.rejections.length === 2 * servers.length)
  assert.ok(editor.rejections.every(({ code }) => code === 'forbidden'))
  // What was refused left nothing behind; after a new sync ben goes on under an ID of his own.
  const again = await synced('ben', room)
  assert.deepEqual(content(again.doc), before)
  again.doc.getMap('sets').set('bens', new Y.Map([['user_id', 'ben'], ['reps', 8]]))
  await ana.next('workout:set:completed', (e) => e.set_id === 'bens')
  laptop.doc.getMap('sets').get('anas').set('reps', 6)
  await ana.next('workout:set:updated', (e) => e.set_id === 'anas')
  const { workout } = await ana.do('workout:sync', { workout_id })
  assert.deepEqual(workout.sets.map((s) => [s.id, s.reps]).sort(), [['anas', 6], ['bens', 8]])
}

export async function nobodyIsShownAsSomebodyElse () {
  const { room } = await groupWorkout()
  const [laptop, editor] = [await synced('ana', room), await synced('ben', room)]
  const state = (p, id) => p.awareness.getStates().get(id)
  const said = () => state(laptop, editor.doc.clientID)
  laptop.awareness.setLocalStateField('cursor', 1)
  await until(() => state(editor, laptop.doc.clientID)?.cursor === 1)
  editor.awareness.setLocalState({ user: { id: 'ana', name: 'Ana' }, cursor: 2 })
  await until(() => said()?.cursor === 2)
  assert.equal(said().user.id, 'ben')
  // A state under ana's ID, newer than hers; her removal; both past the stock client.
  for (const theirs of [{ user: { id: 'ana' }, cursor: 99 }, null]) {
    const other = new Awareness(new Y.Doc())
    other.states.set(laptop.doc.clientID, theirs)
    other.meta.set(laptop.doc.clientID, { clock: 1_000, lastUpdated: 0 })
    editor.socket.emit('awareness-update', encodeAwarenessUpdate(other, [laptop.doc.clientID]))
    other.destroy()
  }
  editor.awareness.setLocalStateField('cursor', 3)
  await until(() => said()?.cursor === 3)
  const third = await synced('ana', room)
  await until(() => state(third, laptop.doc.clientID)?.cursor === 1)
  assert.equal(state(third, laptop.doc.clientID).user.id, 'ana')
}

/** Whatever one Yjs client writes, JSON clients must be able to go on. */
async function expectToGoOn (edit) {
  const ana = await connect('ana')
  const workout_id = (await ana.do('workout:create')).workout.id
  const about = (data = {}) => ({ workout_id, ...data })
  await ana.do('workout:exercise:add', about({ exercise_id: 'squat', exercise: { name: 'Squat' } }))
  const odd = await synced('ana', `workout:${workout_id}`)
  const other = await synced('ana', `workout:${workout_id}`)
  edit(odd.doc, odd.doc.getMap('exercises').get('squat'))
  await pull(odd)
  for (const i of Array(10).keys()) {
    await ana.do('workout:exercise:add', about({ exercise_id: `e${i}`, exercise: { name: 'Row' } }))
  }
  await ana.do('workout:exercise:move', about({ exercise_id: 'e3', after: 'e7' }))
  await ana.do('workout:set:complete', about({ exercise_id: 'e3', set: { reps: 5, weight_kg: 60 } }))
  await ana.do('workout:sync', about())
  await until(() => other.doc.getMap('exercises').has('e9') && other.doc.getMap('sets').size > 0)
  assert.ok(odd.resets.length < 10, `${odd.resets.length} resets`)
  assert.equal((await ana.do('workout:list')).workouts.length, 1)
}

export async function anExerciseThatIsNoMapDoesNotStopTheOthers () {
  await expectToGoOn((doc) => doc.getMap('exercises').set('odd', 'no map'))
}

export async function aSetOfAbsurdWeightDoesNotStopTheOthers () {
  await expectToGoOn((doc) => doc.getMap('sets').set('odd', new Y.Map(Object.entries({
    user_id: 'ana', exercise: 'squat', order: 'a0', kind: 'normal', completed_at: 1, reps: 1e308, weight_kg: 1e308
  }))))
}

export async function aDeeplyNestedValueDoesNotStopTheOthers () {
  await expectToGoOn((doc, squat) => {
    let nested = {}
    for (let i = 0; i < 500; i++) nested = { nested }
    squat.set('odd', nested)
  })
}
