// The page: asks for a token, keeps a connection, and says how old what it shows is.

import { $, setText } from './dom.js'
import * as format from './format.js'
import { HealthView } from './health.js'
import { OwnView } from './own.js'
import { EventSocket } from './socket.js'
import { learnNames, WorkoutsView } from './workouts.js'

const TOKEN = 'repsync-token'
const HEARTBEAT_MS = 3_000
const OLD_AFTER_MS = 5_000 // health comes every 2 s
const AGAIN_MS = 2_000
const SYSTEM = ['system:health', 'system:alerts']

const health = new HealthView()
const own = new OwnView()
const live = new WorkoutsView($('live'), 'Nobody trains at the moment')
const ownLive = new WorkoutsView($('own-live'), 'You are not training at the moment')

let socket = null
let connection = 'asking' // asking | connecting | away | watching
let away = ''
let dataAt = null // when what is shown came
let userId = null
let isAdmin = false
let watched = new Set() // the progress streams

begin(sessionStorage.getItem(TOKEN))
setInterval(showLink, 500)
setInterval(() => socket?.ask('time:sync', { t0: Date.now() }).then(noteHeard, () => {}), HEARTBEAT_MS)

$('ask').addEventListener('submit', (event) => {
  event.preventDefault()
  const token = $('token').value.trim()
  if (token) begin(token)
})
$('forget').addEventListener('click', () => {
  sessionStorage.removeItem(TOKEN)
  location.reload() // nothing of what was shown stays
})

function begin (token) {
  socket?.close()
  if (!token) return askForToken()
  sessionStorage.setItem(TOKEN, token)
  connection = 'connecting'
  socket = new EventSocket(token, {
    event: receive,
    refused (error) {
      sessionStorage.removeItem(TOKEN)
      askForToken(error)
    },
    away (why) {
      connection = 'away'
      away = why ?? ''
      showLink()
    }
  })
  showLink()
}

function askForToken (error) {
  socket = null
  connection = 'asking'
  $('who').hidden = true
  $('ask').hidden = false
  $('reason').hidden = !error
  setText($('reason'), error ? `The server did not take the token: ${error.message} (${error.code}).` : '')
  $('token').value = ''
  $('token').focus()
  showLink()
}

function receive (event, value) {
  if (event === 'welcome') welcome(value)
  else if (event === 'system:health') showHealth(value)
  else if (event === 'system:alert') health.noteAlert(value)
  else if (event === 'progress') showProgress(value)
  else if (event === 'subscription:ended') watched.delete(value.stream) // asked for anew, once
  else if (event === 'auth:expiring') warnOfExpiry(value)
}

async function welcome ({ user }) {
  if (userId !== null && userId !== user.id) return location.reload() // what is shown is another's
  userId = user.id
  connection = 'watching'
  away = ''
  watched = new Set()
  $('ask').hidden = true
  $('reason').hidden = true
  $('token').value = ''
  $('who').hidden = false
  setText($('who-name'), `${user.name} (${user.role})`)
  learnNames([user])
  dataAt ??= Date.now() // from now on something has to come
  await subscribe(user.id)
  showLink()
}

async function subscribe (id) {
  const mine = `user:${id}:progress`
  const on = socket
  health.forgetAlerts()
  try {
    const { subscribed, errors } = await socket.ask('subscribe', { streams: SYSTEM })
    isAdmin = subscribed.includes('system:health')
    const refusal = errors['system:health']
    if (refusal && refusal.code !== 'forbidden') throw new Error(refusal.message)
    $('system').hidden = !isAdmin
    $('own').hidden = isAdmin
    if (!isAdmin) {
      own.note(refusal.message)
      noteHeard()
      const { errors: refused } = await socket.ask('subscribe', { streams: [mine] })
      if (refused[mine]) own.note(refused[mine].message)
    }
  } catch {
    // Refused, as when we come back too often; or the connection is gone, and a new one begins anew.
    setTimeout(() => { if (socket === on && connection === 'watching') subscribe(id) }, AGAIN_MS)
  }
}

function showHealth (value) {
  dataAt = Date.now()
  learnNames((value.records ?? []).map((it) => it.user))
  health.show(value)
  const workouts = value.live ?? []
  live.show(workouts)
  follow(workouts, live)
  showLink()
}

function showProgress (value) {
  if (value.user_id !== undefined) {
    noteHeard()
    const workouts = own.show(value)
    ownLive.show(workouts)
    follow(workouts, ownLive)
  } else {
    (isAdmin ? live : ownLive).showProgress(value)
  }
}

// Watch the progress of these workouts, and of no others.
async function follow (workouts, view) {
  const wanted = new Map(workouts.map((it) => [`workout:${it.workout_id}:progress`, it.workout_id]))
  const ended = [...watched].filter((stream) => !wanted.has(stream))
  const begun = [...wanted.keys()].filter((stream) => !watched.has(stream))
  watched = new Set(wanted.keys())
  try {
    if (ended.length) await socket.ask('unsubscribe', { streams: ended })
    if (!begun.length) return
    const { errors } = await socket.ask('subscribe', { streams: begun })
    for (const [stream, error] of Object.entries(errors)) {
      const isClosed = error.code === 'forbidden' || error.code === 'not_found'
      view.showDenied(wanted.get(stream), isClosed ? 'Progress is for those who may see this workout.' : error.message)
      if (!isClosed) watched.delete(stream) // tried again with the next value
    }
  } catch {
    begun.forEach((stream) => watched.delete(stream)) // likewise; the next value asks again
  }
}

// Somebody without the admin role is sent something only when it changes: a server that answers is
// as good.
function noteHeard () {
  if (!isAdmin && connection === 'watching') dataAt = Date.now()
}

function warnOfExpiry ({ expires_at: at }) {
  away = `the token ends at ${format.clock(at)}`
}

function showLink () {
  const age = dataAt === null ? null : Date.now() - dataAt
  const isOld = age !== null && (age > OLD_AFTER_MS || connection !== 'watching')
  document.body.classList.toggle('old', isOld)
  // Read out when it begins and when it ends, not every second.
  setText($('said'), isOld ? 'What is shown is old' : connection === 'watching' ? 'Live' : '')
  const parts = []
  if (isOld) parts.push(`No data for ${format.duration(age)}`)
  if (connection === 'asking') parts.push(age === null ? 'Not connected' : 'not connected')
  else if (connection === 'connecting') parts.push('Connecting …')
  else if (connection === 'away') {
    const left = socket.retryAt - Date.now()
    parts.push(left > 0 ? `trying again in ${Math.ceil(left / 1_000)} s` : 'trying again …')
    if (age === null) parts.unshift('The server cannot be reached')
  } else if (!isOld) parts.push('Live')
  if (away) parts.push(away)
  setText($('link'), parts.join(' · '))
  $('link').className = isOld || connection === 'away' ? 'old-note' : ''
}
