// A workout through JSON intents: the stock socket.io-client, no CRDT library.

import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { connect, Device, listed, until } from './lib.mjs'

const transports = process.env.REPSYNC_TRANSPORTS?.split(',')
const chosen = transports ? { transports } : {}

export async function aWholeWorkout () {
  const ana = await connect('ana', { ...chosen, device: { id: 'phone-1', name: 'Phone' } })
  const ben = await connect('ben', chosen)
  const workout_id = `leg-day_${randomUUID()}`
  const about = (data = {}) => ({ workout_id, ...data })
  const both = async (event, where) => {
    const [mine, theirs] = await Promise.all([ana.next(event, where), ben.next(event, where)])
    assert.deepEqual(mine, theirs)
    assert.equal(mine.workout_id, workout_id)
    return mine
  }

  const { welcome } = ana
  assert.deepEqual(welcome.user, { id: 'ana', name: 'Ana', role: 'user' })
  assert.equal(welcome.device_id, 'phone-1')
  assert.equal(welcome.protocol, 1)
  assert.equal(welcome.active_workout, null)
  assert.equal(typeof welcome.instance, 'string')
  assert.ok(Number.isInteger(welcome.server_time) && Math.abs(welcome.server_time - Date.now()) < 60_000)
  assert.ok(Number.isInteger(welcome.limits.max_update_bytes))

  const { workout, durability } = await ana.do('workout:create', about({
    title: 'Leg day', mode: 'group', visibility: 'public', op_id: randomUUID()
  }))
  assert.equal(durability, 'disk')
  for (const key of [
    'id', 'title', 'status', 'mode', 'visibility', 'owner_id', 'template_id', 'exercises', 'sets',
    'timers', 'members', 'progress', 'created_at', 'started_at', 'ended_at', 'active_ms',
    'server_time', 'version'
  ]) assert.ok(key in workout, `a workout snapshot has no ${key}`)
  assert.equal(workout.id, workout_id)
  assert.equal(workout.status, 'planned')
  assert.equal(workout.owner_id, 'ana')
  assert.deepEqual(workout.members, [{
    user: { id: 'ana', name: 'Ana' },
    role: 'owner',
    devices: [{ id: 'phone-1', name: 'Phone' }],
    online: true
  }])
  assert.equal((await ben.refused('workout:create', about())).code, 'conflict')

  const joined = await ben.do('workout:join', about({ role: 'participant' }))
  assert.equal(joined.role, 'participant')
  assert.equal(joined.workout.title, 'Leg day')
  assert.deepEqual(joined.members.map((member) => member.user.id), ['ana', 'ben'])
  const arrival = await ana.next('workout:member:joined', (e) => e.user.id === 'ben')
  assert.deepEqual(arrival.user, { id: 'ben', name: 'Ben' })

  await ana.do('workout:start', about())
  const started = await both('workout:started')
  assert.ok(Number.isInteger(started.started_at))
  assert.equal((await ana.refused('workout:start', about())).code, 'conflict')
  assert.equal((await connect('ana', chosen)).welcome.active_workout, workout_id)

  const add = async (device, name) => {
    const made = await device.do('workout:exercise:add', about({
      exercise: { name, target: [{ kind: 'normal', reps: 5, weight_kg: 62.5 }], rest_s: 90 }
    }))
    const { exercise } = await both('workout:exercise:changed', (e) => e.exercise_id === made.exercise_id)
    assert.equal(exercise.name, name)
    assert.deepEqual(exercise.target, [{ kind: 'normal', reps: 5, weight_kg: 62.5 }])
    return made.exercise_id
  }
  const squat = await add(ana, 'Squat')
  const bench = await add(ben, 'Bench press')
  const row = await add(ana, 'Row')

  await ben.do('workout:exercise:update', about({
    exercise_id: squat, exercise: { name: 'Front squat', note: 'elbows up 🏋️', rest_s: null }
  }))
  const updated = await both('workout:exercise:changed', (e) => e.exercise?.name === 'Front squat')
  assert.equal(updated.exercise.note, 'elbows up 🏋️')
  assert.ok(!('rest_s' in updated.exercise))

  await ana.do('workout:exercise:move', about({ exercise_id: row, before: squat }))
  await both('workout:exercise:changed', (e) => e.exercise_id === row)
  await ana.do('workout:exercise:remove', about({ exercise_id: bench }))
  assert.equal((await both('workout:exercise:changed', (e) => e.exercise_id === bench)).exercise, null)
  const planned = (await ben.do('workout:sync', about())).workout
  assert.deepEqual(planned.exercises.map((exercise) => exercise.id), [row, squat])

  const set = { weight_kg: 102.5, reps: 5, rpe: 8.5, note: 'deep' }
  const done = await ana.do('workout:set:complete', about({ exercise_id: squat, set }))
  assert.equal(done.durability, 'disk')
  assert.equal(done.is_pr, true)
  assert.deepEqual(done.records.map((record) => record.type).sort(), ['e1rm', 'volume', 'weight'])
  const completed = await both('workout:set:completed')
  assert.equal(completed.set_id, done.set_id)
  assert.deepEqual(completed.user, { id: 'ana', name: 'Ana' })
  assert.equal(completed.is_pr, true)
  assert.equal(completed.set.kind, 'normal')
  assert.equal(completed.set.device_id, 'phone-1')
  for (const [key, value] of Object.entries(set)) assert.equal(completed.set[key], value)

  const correction = about({ set_id: done.set_id, set: { reps: 6, note: null } })
  assert.equal((await ben.refused('workout:set:update', correction)).code, 'forbidden')
  await ana.do('workout:set:update', correction)
  const corrected = await both('workout:set:updated')
  assert.equal(corrected.set.reps, 6)
  assert.ok(!('note' in corrected.set))

  const lighter = await ben.do('workout:set:complete', about({
    exercise_id: row, set_id: 'bens-set', set: { kind: 'warmup', weight_kg: 20, reps: 10 }
  }))
  assert.deepEqual([lighter.set_id, lighter.is_pr, lighter.records], ['bens-set', false, []])
  assert.equal((await both('workout:set:completed')).is_pr, false)
  await ben.do('workout:set:remove', about({ set_id: 'bens-set' }))
  assert.equal((await both('workout:set:removed')).set_id, 'bens-set')

  assert.equal((await ben.refused('workout:pause', about())).code, 'forbidden')
  await ana.do('workout:pause', about())
  await both('workout:paused')
  await ana.do('workout:resume', about())
  await both('workout:resumed')

  const { workout: last, server_time } = await ben.do('workout:sync', about())
  assert.ok(Number.isInteger(server_time))
  assert.equal(last.status, 'active')
  assert.deepEqual(last.sets.map((s) => [s.id, s.reps]), [[done.set_id, 6]])
  assert.equal(last.progress.ana.sets_done, 1)
  assert.equal(last.progress.ana.volume_kg, 615)
  for (const key of ['sets_done', 'sets_planned', 'volume_kg', 'reps', 'best', 'records']) {
    assert.ok(key in last.progress.ana, `progress has no ${key}`)
  }

  await ben.do('workout:leave', about())
  assert.equal((await ana.next('workout:member:left')).user.id, 'ben')
  ben.events.length = 0
  await ana.do('workout:complete', about())
  await ana.next('workout:completed')
  assert.equal((await ana.refused('workout:resume', about())).code, 'conflict')
  const { workouts } = await ben.do('workout:list')
  assert.deepEqual(workouts.map((w) => [w.id, w.status, w.role]), [[workout_id, 'completed', 'participant']])
  assert.deepEqual(ben.events, [], 'who has left is told nothing more')

  const wanted = transports?.at(-1) ?? 'websocket'
  await until(() => ana.transport === wanted && ben.transport === wanted, `both on ${wanted}`)
}

export async function oneWorkoutAtATime () {
  const ana = await connect('ana')
  const first = (await ana.do('workout:create')).workout.id
  const second = (await ana.do('workout:create')).workout.id
  await ana.do('workout:start', { workout_id: first })
  const error = await ana.refused('workout:start', { workout_id: second })
  assert.equal(error.code, 'conflict')
  assert.equal(error.details.active_workout, first)
  await ana.do('workout:abandon', { workout_id: first })
  assert.equal((await ana.next('workout:abandoned')).workout_id, first)
  await ana.do('workout:start', { workout_id: second })
}

export async function anInvitationReachesEveryDevice () {
  const ana = await connect('ana')
  const devices = [await connect('ben'), await connect('ben', { transports: ['polling'] })]
  const workout_id = (await ana.do('workout:create', { title: 'Pull', mode: 'group' })).workout.id
  assert.equal((await devices[0].refused('workout:join', { workout_id })).code, 'forbidden')
  await ana.do('workout:invite', { workout_id, user_id: 'ben', role: 'coach' })
  for (const device of devices) {
    const invited = await device.next('workout:invited')
    assert.deepEqual(invited, { workout_id, title: 'Pull', role: 'coach', by: { id: 'ana', name: 'Ana' } })
  }
  assert.equal((await devices[1].do('workout:join', { workout_id })).role, 'coach')
}

export async function everyEventIsAnsweredOnce () {
  const ana = await connect('ana')
  const workout_id = (await ana.do('workout:create')).workout.id
  const { exercise_id } = await ana.do('workout:exercise:add', { workout_id, exercise: { name: 'Squat' } })
  assert.equal((await ana.refused('no:such:event', {})).code, 'not_found')
  assert.equal((await ana.refused('workout:sync', { workout_id: 'not-there' })).code, 'not_found')
  const bad = await ana.refused('workout:set:complete', { workout_id, exercise_id, set: { reps: 'five' } })
  assert.equal(bad.code, 'invalid')
  assert.deepEqual(bad.details.map((detail) => detail.path), ['set.reps'])
  for (const args of [[], [null], ['text'], [{}, {}], [[1]], [{ workout_id: new Uint8Array([1, 2]) }]]) {
    assert.equal((await ana.refused('workout:sync', ...args)).code, 'invalid', JSON.stringify(args))
  }
  assert.equal((await ana.ask('workout:list')).ok, true, 'no payload at all is an empty one')
  // An event without an ack is carried out as well.
  ana.socket.emit('workout:set:complete', { workout_id, exercise_id, set: { reps: 5 } })
  await ana.next('workout:set:completed')
}

export async function aRetryingClientIsServedInOrder () {
  const ana = new Device('ana', { retries: 3, ackTimeout: 5_000 })
  const { workout } = await ana.socket.emitWithAck('workout:create', { workout_id: 'queued' })
  assert.equal(workout.id, 'queued')
  const names = Array.from({ length: 20 }, (_, i) => `Exercise ${i}`)
  for (const name of names) {
    ana.socket.emit('workout:exercise:add', { workout_id: 'queued', exercise: { name } })
  }
  const shown = async () => (await (await connect('ana')).do('workout:sync', { workout_id: 'queued' })).workout
  await until(() => ana.events.filter((e) => e.name === 'workout:exercise:changed').length === 20)
  assert.deepEqual((await shown()).exercises.map((exercise) => exercise.name), names)
}

export async function nothingIsLostWhileAConnectionUpgrades () {
  const watch = await connect('ana', { transports: ['websocket'] })
  const workout_id = (await watch.do('workout:create')).workout.id
  const phones = Array.from({ length: 8 }, () => new Device('ana'))
  const upgraded = phones.map((phone) => new Promise((resolve) => {
    phone.socket.io.once('open', () => phone.socket.io.engine.once('upgrade', resolve))
  }))
  await Promise.all(phones.map((phone) => phone.next('welcome')))
  await Promise.all(phones.map((phone) => phone.do('workout:join', { workout_id })))
  // Acks, posts to all and intents of all cross the change of transports.
  const names = phones.map((_, p) => Array.from({ length: 25 }, (_, i) => `${p}/${i}`))
  await Promise.all(phones.flatMap((phone, p) => names[p].map(
    (name) => phone.do('workout:exercise:add', { workout_id, exercise: { name } })
  )))
  await Promise.all(upgraded)
  const count = names.flat().length
  for (const device of [watch, ...phones]) {
    const changes = () => device.events.filter((e) => e.name === 'workout:exercise:changed')
    await until(() => changes().length === count, `${count} events`)
    const order = changes().map((e) => e.payload.exercise.name)
    names.forEach((mine, p) => {
      assert.deepEqual(order.filter((name) => name.startsWith(`${p}/`)), mine, 'in the order sent')
    })
  }
  const { workout } = await watch.do('workout:sync', { workout_id })
  assert.equal(workout.exercises.length, count)
  assert.deepEqual(workout.exercises, listed(Object.fromEntries(workout.exercises.map((e) => [e.id, e]))))
}

export async function anOperationIsCarriedOutOnce () {
  const phone = await connect('ana', { device: { id: 'phone', name: 'Phone' } })
  const watch = await connect('ana', { device: { id: 'watch', name: 'Watch' } })
  const creation = { title: 'Once', op_id: randomUUID() }
  const made = await Promise.all([phone.do('workout:create', creation), watch.do('workout:create', creation)])
  assert.deepEqual(made[0], made[1])
  const workout_id = made[0].workout.id
  await Promise.all([phone, watch].map((device) => device.do('workout:join', { workout_id })))
  const { exercise_id } = await phone.do('workout:exercise:add', { workout_id, exercise: { name: 'Squat' } })

  const operation = {
    workout_id, exercise_id, op_id: randomUUID(), set: { weight_kg: 100, reps: 5 }
  }
  const first = await phone.do('workout:set:complete', operation)
  assert.deepEqual(await phone.do('workout:set:complete', operation), first, 'one after the other')

  const other = { ...operation, op_id: randomUUID(), set: { weight_kg: 110, reps: 3 } }
  const answers = await Promise.all(
    Array.from({ length: 10 }, (_, i) => [phone, watch][i % 2].do('workout:set:complete', other))
  )
  for (const answer of answers) assert.deepEqual(answer, answers[0], 'at once, on two connections')

  const third = await connect('ana')
  assert.deepEqual(await third.do('workout:set:complete', other), answers[0], 'on a later connection')
  const { workout } = await third.do('workout:sync', { workout_id })
  assert.deepEqual(workout.sets.map((set) => set.id), [first.set_id, answers[0].set_id])
  await watch.next('workout:set:completed', (e) => e.set_id === first.set_id)
  await watch.next('workout:set:completed', (e) => e.set_id === answers[0].set_id)
  assert.ok(!watch.events.some((e) => e.name === 'workout:set:completed'), 'told once each')

  // Somebody else's operation of the same id is another one.
  const ben = await connect('ben')
  assert.notDeepEqual((await ben.do('workout:create', creation)).workout.owner_id, 'ana')
}
