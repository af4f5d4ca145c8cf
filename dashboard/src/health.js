// What `system:health` and `system:alerts` tell, on the page.

import { Chart } from './charts.js'
import { $, fillList, fillTable, make, setText } from './dom.js'
import * as format from './format.js'

const MOST_ALERTS = 20

const TILES = [
  { name: 'Connections', of: (point) => point.connections, unit: '' },
  { name: 'Updates', of: (point) => point.updates_per_s, unit: '/s' },
  { name: 'Event loop late', of: (point) => point.lag_ms, unit: 'ms' }
]

const WORDS = { healthy: 'Healthy', degraded: 'Degraded', unhealthy: 'Unhealthy' }

export class HealthView {
  constructor () {
    this._tiles = TILES.map((tile) => new Tile($('tiles'), tile))
    this._figures = new Map()
    this._box = make('dl', { className: 'card figures' })
    $('tiles').append(this._box)
    this._alerts = new Map()
    this._showAlerts()
  }

  show (health) {
    showStatus(health.status)
    const history = health.history ?? []
    const loop = health.dependencies?.event_loop
    const now = {
      t: health.server_time ?? Date.now(),
      lag_ms: loop?.lag_ms,
      connections: health.connections,
      updates_per_s: health.updates_per_s ?? history.at(-1)?.updates_per_s
    }
    this._tiles.forEach((tile) => tile.show(history, now))
    this._showFigure('Up for', format.seconds(health.uptime_s))
    this._showFigure('Open rooms', format.number(health.rooms))
    this._showFigure('Deliveries', `${format.number(history.at(-1)?.deliveries_per_s)} /s`)
    this._showFigure('Deepest send queue', format.bytes(health.send_queue_bytes))
    this._showFigure('Oldest unflushed edit', latency(health.oldest_unflushed_ms))
    if (health.spool_bytes !== undefined) this._showFigure('In the spool', format.bytes(health.spool_bytes))
    this._showFigure('Version', health.version ?? format.NOTHING)

    const at = health.server_time ?? Date.now()
    fillTable($('dependencies'), ['Name', 'State', 'Since', 'Latency#', 'Breaker'],
      Object.entries(health.dependencies ?? {}).map(([name, it]) => [
        name.replaceAll('_', ' '),
        state(it.state),
        Number.isFinite(it.since) ? format.duration(at - it.since) : format.NOTHING,
        latency(it.latency_ms ?? it.lag_ms),
        (it.breaker ?? format.NOTHING).replace('_', ' ')
      ]), 'Nothing is known yet')
    const faults = [
      ...Object.entries(health.dependencies ?? {}).map(([name, it]) => [name, it.error]),
      ...(health.quarantined_documents ?? []).map((it) => [it.doc, `set aside: ${it.cause}`])
    ].filter(([, fault]) => fault)
    $('faults').hidden = faults.length === 0
    fillList($('faults'), faults, ([name]) => name, (item, [name, fault]) => setText(item, `${name}: ${fault}`), '')
    fillTable($('instances'), ['Instance', 'State', 'Connections#', 'Rooms#', 'Up for', 'Heard of'],
      (health.instances ?? []).map((it) => [
        { text: it.instance, className: 'code' },
        state(it.status),
        format.number(it.connections),
        format.number(it.rooms),
        format.seconds(it.uptime_s),
        `${format.duration(it.seen_ms_ago ?? 0)} ago`
      ]), 'No instance has told of itself yet')
    fillTable($('busiest'), ['Room', 'Members#', 'Updates/s#'],
      (health.busiest ?? []).map((it) => [
        { text: it.title || it.doc, className: 'text' }, format.number(it.members), format.number(it.updates_per_s)
      ]), 'No room is open')
    fillList($('records'), (health.records ?? []).slice().sort((a, b) => b.at_ms - a.at_ms),
      (it) => JSON.stringify([it.at_ms, it.workout_id, it.user?.id, it.exercise, it.type]),
      fillRecord, 'No record yet')
    for (const alert of health.alerts ?? []) this._note(alert)
    this._showAlerts()
  }

  // A subscription begins: all that is still of interest comes again.
  forgetAlerts () {
    this._alerts.clear()
  }

  noteAlert (alert) {
    this._note(alert)
    this._showAlerts()
  }

  _note (alert) {
    const key = alert.id ?? alert.key
    const known = this._alerts.get(key)
    if (!known || (alert.last_at ?? 0) >= (known.last_at ?? 0)) this._alerts.set(key, alert)
  }

  _showAlerts () {
    const alerts = [...this._alerts.values()]
      .sort((a, b) => (b.state === 'firing') - (a.state === 'firing') || b.last_at - a.last_at)
      .slice(0, MOST_ALERTS)
    fillList($('alerts'), alerts, (it) => it.id ?? it.key, fillAlert, 'All quiet')
  }

  _showFigure (name, text) {
    let value = this._figures.get(name)
    if (!value) {
      value = make('dd')
      this._figures.set(name, value)
      this._box.append(make('div', {}, make('dt', {}, name), value))
    }
    setText(value, text)
  }
}

// One number with its history.
class Tile {
  constructor (parent, { name, of, unit }) {
    this._of = of
    this._name = name
    this._unit = unit
    this._recent = []
    this._value = make('p', { className: 'value' })
    this._box = make('div', { className: 'chart', role: 'img' })
    parent.append(make('div', { className: 'card tile' }, make('h3', {}, name), this._value, this._box))
    this._chart = new Chart(this._box, { height: 90 })
  }

  show (history, now) {
    const value = this._of(now)
    setText(this._value, `${format.number(value)} ${this._unit}`.trim())
    // The history has a point every few seconds: those that came since its last one are put behind.
    const last = history.at(-1)?.t ?? 0
    this._recent = this._recent.filter((point) => point.t > last)
    if (Number.isFinite(value) && now.t > last) this._recent.push(now)
    const points = [...history, ...this._recent]
    if (points.length < 2) return
    const values = points.map((point) => this._of(point) ?? null)
    this._chart.draw(points.map((point) => point.t), [{ colour: 'line-1', values }])
    this._box.setAttribute('aria-label',
      `${this._name} over ${format.duration(now.t - points[0].t)}: now ${format.number(value)}, at most ${format.number(Math.max(...values))} ${this._unit}`)
  }
}

function showStatus (status) {
  $('status').hidden = false
  setText($('status'), WORDS[status] ?? status)
  document.title = `${WORDS[status] ?? status} – RepSync`
  $('status').className = `badge ${status in WORDS ? status : ''}`
}

function state (text) {
  return { text: text ?? format.NOTHING, className: text in WORDS ? `state ${text}` : 'state' }
}

function latency (ms) {
  return Number.isFinite(ms) ? `${format.number(ms)} ms` : format.NOTHING
}

function fillRecord (item, it) {
  if (item.children.length) return
  item.append(
    make('time', {}, format.clock(it.at_ms)),
    make('strong', {}, it.user?.name ?? it.user?.id ?? 'somebody'),
    make('span', {}, ` ${format.exercise(it.exercise)}`),
    make('span', { className: 'quiet' }, format.record(it.type, it.value))
  )
}

function fillAlert (item, it) {
  if (!item.children.length) {
    item.append(make('strong', { className: 'badge' }), make('span', { className: 'title' }), make('span', { className: 'quiet' }), make('time'))
  }
  const [badge, title, message, time] = item.children
  const isFiring = it.state === 'firing'
  item.className = isFiring ? 'firing' : 'resolved'
  badge.className = `badge ${isFiring ? it.severity : 'healthy'}`
  setText(badge, isFiring ? it.severity : 'resolved')
  setText(title, it.title ?? it.key)
  setText(message, [it.message, it.count > 1 ? `${it.count} times` : '', it.instance].filter(Boolean).join(' · '))
  setText(time, format.clock(it.last_at))
}
