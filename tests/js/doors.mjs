// Who is not let in, and how they are told; tokens that end while they are in use.

import assert from 'node:assert/strict'
import { connect, content, provider, refusal, synced, tokens, until } from './lib.mjs'

async function expectRefusal (namespace, auth, code) {
  const error = await refusal(namespace, auth)
  const about = `${namespace} ${JSON.stringify(auth)?.slice(0, 60)}`
  assert.equal(error.message, code, about)
  assert.equal(error.data?.code, code, about)
  assert.equal(typeof error.data.message, 'string')
  assert.equal(typeof error.data.retryable, 'boolean')
  return error.data
}

export async function whoHasNoGoodTokenIsRefused () {
  const ana = await connect('ana')
  const workout_id = (await ana.do('workout:create')).workout.id
  const [head, claims, signature] = tokens.ana.split('.')
  const none = Buffer.from(JSON.stringify({ alg: 'none', typ: 'JWT' })).toString('base64url')
  for (const namespace of ['/', `/yjs|workout:${workout_id}`]) {
    for (const auth of [
      undefined,
      {},
      { token: null },
      { token: '' },
      { token: 'nonsense' },
      { token: 7 },
      { token: tokens.ana.slice(0, -4) + 'AAAA' },
      { token: `${none}.${claims}.` },
      { token: `${head}.${claims}` },
      { token: `Bearer ${tokens.ana}` },
      { token: [head, claims, signature] },
      { token: 'x'.repeat(100_000) }
    ]) await expectRefusal(namespace, auth, 'unauthenticated')
    await expectRefusal(namespace, { token: tokens.expired }, 'token_expired')
  }
  const odd = await expectRefusal('/', { token: tokens.ana, device: 'phone' }, 'invalid')
  assert.deepEqual(odd.details.map((detail) => detail.path), ['device'])
}

export async function aStrangerIsRefused () {
  const ana = await connect('ana')
  const workout_id = (await ana.do('workout:create')).workout.id
  const template_id = (await ana.do('template:create', { title: 'Mine' })).template.id
  const auth = { token: tokens.stranger }
  await expectRefusal(`/yjs|workout:${workout_id}`, auth, 'forbidden')
  await expectRefusal(`/yjs|template:${template_id}`, auth, 'forbidden')
  const stranger = await connect('stranger')
  for (const event of ['workout:join', 'workout:sync', 'workout:start']) {
    assert.equal((await stranger.refused(event, { workout_id })).code, 'forbidden', event)
  }
  assert.equal((await stranger.refused('template:get', { template_id })).code, 'forbidden')
}

export async function aPlaceThatThereIsNotIsRefused () {
  const auth = { token: tokens.ana }
  await expectRefusal('/yjs|workout:not-there', auth, 'not_found')
  await expectRefusal('/yjs|template:not-there', auth, 'not_found')
  for (const namespace of ['/admin', '/yjs', '/YJS|workout:a', '//']) {
    await expectRefusal(namespace, auth, 'not_found')
  }
  for (const id of [
    'workout:a b', 'workout:..%2f', 'workout:../x', 'workout:', `workout:${'x'.repeat(65)}`,
    'workout:ä', 'workout:a:b', 'workout:a%20b', 'workout:a\n', 'gym:a', 'workout', '', '__proto__',
    'workout:a/b', 'workout:a|b', 'workout:\u0000'
  ]) await expectRefusal(`/yjs|${id}`, auth, 'invalid')
  const edge = 'x'.repeat(64)
  await (await connect('ana')).do('workout:create', { workout_id: edge })
  await synced('ana', `workout:${edge}`)
}

export async function aTokenThatEndsEndsItsConnections () {
  const [ana, brief] = [await connect('ana'), await connect('ana', { token: tokens.brief })]
  const expiresAt = claimsOf(tokens.brief).exp * 1_000
  const room = `template:${(await ana.do('template:create', { title: 'Short' })).template.id}`
  const editor = await synced('ana', room, { token: tokens.brief })
  const notices = [brief.next('auth:expiring')]
  notices.push(new Promise((resolve) => editor.socket.once('auth:expiring', resolve)))
  assert.ok(Math.abs((await notices[0]).expires_at - expiresAt) < 1_000)

  const ends = [brief.socket, editor.socket].map((socket) => new Promise((resolve) => {
    let last = null
    socket.onAny((event, payload) => { last = { event, payload } })
    socket.once('disconnect', (reason) => resolve({ reason, last }))
  }))
  for (const { reason, last } of await Promise.all(ends)) {
    assert.equal(reason, 'io server disconnect')
    assert.equal(last?.payload?.code, 'token_expired', JSON.stringify(last))
  }
  const late = Date.now() - expiresAt
  assert.ok(late > -100 && late < 2_000, `ended ${late} ms after the token`)
  assert.ok(ana.socket.connected, 'another token of the same user is none of its business')
}

export async function aNewTokenKeepsTheConnections () {
  const ana = await connect('ana', { token: tokens.brief })
  const room = `template:${(await ana.do('template:create', { title: 'Long' })).template.id}`
  const editor = await synced('ana', room, { token: tokens.brief })
  const reader = await synced('ana', room)
  await ana.next('auth:expiring')
  assert.equal((await ana.refused('auth:refresh', { token: 'nonsense' })).code, 'unauthenticated')
  assert.equal((await ana.refused('auth:refresh', { token: tokens.expired })).code, 'token_expired')
  assert.equal((await ana.refused('auth:refresh', { token: tokens.stranger })).code, 'forbidden')
  const { expires_at } = await ana.do('auth:refresh', { token: tokens.ana })
  assert.ok(Math.abs(expires_at - claimsOf(tokens.ana).exp * 1_000) < 1_000)
  const drops = []
  for (const socket of [ana.socket, editor.socket]) socket.on('disconnect', (why) => drops.push(why))
  const end = claimsOf(tokens.brief).exp * 1_000 + 300
  await until(() => Date.now() > end, 'the first token to end')
  editor.doc.getText('notes').insert(0, 'still here')
  await until(() => content(reader.doc).notes === 'still here')
  await ana.do('workout:list')
  assert.deepEqual(drops, [])
}

export async function aDocumentsOwnConnectionCanBeRefreshed () {
  const ana = await connect('ana')
  const room = `template:${(await ana.do('template:create', { title: 'Alone' })).template.id}`
  const editor = provider('ana', room, { token: tokens.brief })
  await until(() => editor.synced)
  const answer = await editor.socket.emitWithAck('auth:refresh', { token: tokens.ana })
  assert.equal(answer.ok, true)
  const drops = []
  editor.socket.on('disconnect', (why) => drops.push(why))
  const end = claimsOf(tokens.brief).exp * 1_000 + 300
  await until(() => Date.now() > end, 'the first token to end')
  const unknown = await editor.socket.emitWithAck('workout:list', {})
  assert.equal(unknown.error.code, 'not_found', 'intents belong to the other namespace')
  assert.deepEqual(drops, [])
}

function claimsOf (token) {
  return JSON.parse(Buffer.from(token.split('.')[1], 'base64url'))
}
