// One workout on two kinds of client: a laptop with its Y.Doc, a watch with JSON events.

import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import * as Y from 'yjs'
import { askTest, connect, content, converged, listed, send, synced, until, updatesOf } from './lib.mjs'

async function workout () {
  const watch = await connect('ana', { device: { id: 'watch-1', name: 'Watch' } })
  const workout_id = (await watch.do('workout:create', { title: 'Leg day' })).workout.id
  const laptop = await synced('ana', `workout:${workout_id}`)
  return { watch, workout_id, laptop }
}

function writeSet (doc, id, fields) {
  doc.getMap('sets').set(id, new Y.Map(Object.entries({
    user_id: 'ana', order: 'a0', kind: 'normal', completed_at: Date.now(), ...fields
  })))
}

async function expectShown (watch, workout_id, doc) {
  const shown = (await watch.do('workout:sync', { workout_id })).workout
  const { meta, exercises, sets, timers } = content(doc)
  for (const [key, value] of Object.entries(meta)) assert.deepEqual(shown[key], value, `meta.${key}`)
  for (const key of ['template_id', 'started_at', 'ended_at']) assert.deepEqual(shown[key], meta[key] ?? null)
  assert.deepEqual(shown.exercises, listed(exercises))
  assert.deepEqual(shown.sets, listed(sets))
  assert.deepEqual(shown.timers, timers)
  return shown
}

export async function theWatchAndTheLaptopShowTheSameWorkout () {
  const { watch, workout_id, laptop } = await workout()
  const { doc } = laptop
  await watch.do('workout:start', { workout_id })
  await until(() => doc.getMap('meta').get('status') === 'active')
  const { exercise_id } = await watch.do('workout:exercise:add', {
    workout_id,
    exercise: {
      name: 'Squat',
      exercise_id: 'barbell-squat',
      superset: 'A',
      rest_s: 120,
      note: 'belt',
      target: [{ reps: 5, weight_kg: 100 }, { kind: 'warmup', seconds: 30.5, distance_m: 400, rpe: 7.5 }]
    }
  })
  const done = await watch.do('workout:set:complete', {
    workout_id, exercise_id, set: { weight_kg: 102.5, reps: 5, rpe: 8, note: 'ok', seconds: 40, distance_m: 0 }
  })
  await until(() => doc.getMap('sets').has(done.set_id))
  const set = doc.getMap('sets').get(done.set_id)
  assert.ok(set instanceof Y.Map && doc.getMap('exercises').get(exercise_id) instanceof Y.Map)
  const expected = {
    user_id: 'ana', exercise: exercise_id, kind: 'normal', weight_kg: 102.5, reps: 5, rpe: 8,
    note: 'ok', seconds: 40, distance_m: 0, device_id: 'watch-1'
  }
  for (const [key, value] of Object.entries(expected)) assert.strictEqual(set.get(key), value, key)
  assert.equal(typeof set.get('completed_at'), 'number', 'a time is a number, no BigInt')
  assert.ok(Number.isInteger(set.get('completed_at')))
  assert.equal(typeof doc.getMap('meta').get('created_at'), 'number')
  JSON.stringify(content(doc)) // would throw on a BigInt
  await expectShown(watch, workout_id, doc)

  await watch.do('workout:set:update', { workout_id, set_id: done.set_id, set: { reps: 6 } })
  await until(() => set.get('reps') === 6, 'an update changes the set in place')
  await watch.do('workout:pause', { workout_id })
  await until(() => doc.getMap('meta').get('status') === 'paused')
  const shown = await expectShown(watch, workout_id, doc)
  assert.deepEqual(shown.members[0].devices.map((device) => device.id).includes('watch-1'), true)
  await watch.do('workout:set:remove', { workout_id, set_id: done.set_id })
  await watch.do('workout:exercise:remove', { workout_id, exercise_id })
  await until(() => doc.getMap('sets').size === 0 && doc.getMap('exercises').size === 0)
  await watch.do('workout:complete', { workout_id })
  await until(() => doc.getMap('meta').get('status') === 'completed')
  await expectShown(watch, workout_id, doc)
}

export async function aSetWrittenIntoTheDocumentReachesTheWatch () {
  const { watch, workout_id, laptop } = await workout()
  const { doc } = laptop
  doc.getMap('exercises').set('squat', new Y.Map(Object.entries({ name: 'Squat', order: 'a0', note: '', target: [] })))
  const changed = await watch.next('workout:exercise:changed')
  assert.equal(changed.exercise.name, 'Squat')

  writeSet(doc, 's1', { exercise: 'squat', weight_kg: 100, reps: 5 })
  const first = await watch.next('workout:set:completed')
  assert.deepEqual(first.set, { ...content(doc).sets.s1, id: 's1' })
  assert.deepEqual([first.workout_id, first.set_id, first.is_pr], [workout_id, 's1', true])
  assert.deepEqual(first.user, { id: 'ana', name: 'Ana' })

  writeSet(doc, 's2', { exercise: 'squat', weight_kg: 80, reps: 3, order: 'a1' })
  assert.equal((await watch.next('workout:set:completed')).is_pr, false)
  writeSet(doc, 's3', { exercise: 'squat', weight_kg: 62.5, reps: 20, order: 'a2' })
  assert.equal((await watch.next('workout:set:completed')).is_pr, true, 'more volume')
  doc.getMap('sets').get('s2').set('reps', 4)
  const updated = await watch.next('workout:set:updated')
  assert.deepEqual([updated.set_id, updated.set.reps], ['s2', 4])
  doc.getMap('sets').delete('s2')
  assert.equal((await watch.next('workout:set:removed')).set_id, 's2')
  const again = await watch.do('workout:set:complete', {
    workout_id, exercise_id: 'squat', set: { weight_kg: 101, reps: 5 }
  })
  assert.equal(again.is_pr, true)
  await until(() => doc.getMap('sets').has(again.set_id))
  const shown = await expectShown(watch, workout_id, doc)
  assert.equal(shown.progress.ana.sets_done, 3)
  assert.equal(shown.progress.ana.volume_kg, 500 + 1250 + 505)
}

export async function setsLoggedOfflineOnBothAreAllThere () {
  const { watch, workout_id, laptop } = await workout()
  const { exercise_id } = await watch.do('workout:exercise:add', { workout_id, exercise: { name: 'Squat' } })
  await until(() => laptop.doc.getMap('exercises').has(exercise_id))
  laptop.disconnect()
  for (let i = 0; i < 5; i++) writeSet(laptop.doc, `laptop-${i}`, { exercise: exercise_id, reps: i + 1 })
  watch.socket.io.engine.close()
  // socket.io-client keeps what is sent while it is away.
  const made = await Promise.all(Array.from({ length: 5 }, (_, i) => watch.do('workout:set:complete', {
    workout_id, exercise_id, set: { reps: 10 + i }, op_id: randomUUID()
  })))
  await watch.do('workout:join', { workout_id })
  laptop.connect()
  for (let i = 0; i < 5; i++) await watch.next('workout:set:completed', (e) => e.set_id === `laptop-${i}`)
  await until(() => laptop.doc.getMap('sets').size === 10)
  const shown = await expectShown(watch, workout_id, laptop.doc)
  assert.deepEqual(
    shown.sets.map((set) => set.id).sort(),
    [...made.map((answer) => answer.set_id), ...Array.from({ length: 5 }, (_, i) => `laptop-${i}`)].sort()
  )
}

export async function aKilledServerLosesNothingThatWasAcked () {
  const { watch, workout_id, laptop } = await workout()
  const second = await synced('ana', `workout:${workout_id}`)
  const { exercise_id } = await watch.do('workout:exercise:add', { workout_id, exercise: { name: 'Squat' } })
  await until(() => laptop.doc.getMap('exercises').has(exercise_id))
  const acked = new Set()
  // What the kill cuts off gets no answer, and may be there or not.
  const log = async (i, answer) => { if ((await answer.catch(() => null))?.ok) acked.add(i) }
  const complete = (i) => watch.socket.timeout(20_000).emitWithAck('workout:set:complete', {
    workout_id, exercise_id, set_id: `watch-${i}`, set: { reps: i }, op_id: randomUUID()
  }).catch(() => null)
  for (let i = 1; i <= 20; i++) {
    void log(`watch-${i}`, complete(i))
    writeSet(laptop.doc, `laptop-${i}`, { exercise: exercise_id, reps: i })
  }
  const [update] = updatesOf(second.doc, () => writeSet(second.doc, 'second-1', { exercise: exercise_id, reps: 1 }))
  void log('second-1', send(second, update))
  await until(() => acked.size >= 3)
  await askTest('kill')
  await until(() => !laptop.socket.connected && !watch.socket.connected && !second.socket.connected)
  for (let i = 21; i <= 30; i++) {
    writeSet(laptop.doc, `laptop-${i}`, { exercise: exercise_id, reps: i })
    writeSet(second.doc, `second-${i}`, { exercise: exercise_id, reps: i })
  }
  const offline = Array.from({ length: 10 }, (_, i) => log(`watch-${i + 21}`, complete(i + 21)))
  laptop.doc.getMap('meta').set('title', 'Survivor')
  await askTest('start')
  await Promise.all(offline)
  await until(() => laptop.socket.connected && second.socket.connected && watch.socket.connected)
  const expected = new Set(acked)
  for (let i = 1; i <= 30; i++) expected.add(`laptop-${i}`)
  for (let i = 21; i <= 30; i++) expected.add(`second-${i}`).add(`watch-${i}`)
  const missing = () => [...expected].filter((id) => !laptop.doc.getMap('sets').has(id))
  await until(() => missing().length === 0).catch(() => assert.fail(`lost: ${missing()}`))
  await converged(laptop.doc, second.doc)
  assert.equal(laptop.doc.getMap('meta').get('title'), 'Survivor')
  await expectShown(watch, workout_id, laptop.doc)
  writeSet(laptop.doc, 'after', { exercise: exercise_id, reps: 1 })
  await until(() => second.doc.getMap('sets').has('after'))
}
