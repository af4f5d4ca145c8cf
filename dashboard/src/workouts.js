// Live workouts: a card for each, with everybody's volume as it grows.

import { Chart } from './charts.js'
import { fillTable, make, setText } from './dom.js'
import * as format from './format.js'

const LINES = 6
const MOST_POINTS = 500
const MOST_LINES = 12

const COLUMNS = ['Who', 'Sets#', 'Volume#', 'Records#']

// Whose name belongs to an id, as far as the page has heard.
const names = new Map()

export function learnNames (users) {
  for (const user of users) if (user?.id && user.name) names.set(user.id, user.name)
}

export class WorkoutsView {
  constructor (parent, emptyText) {
    this._parent = parent
    this._cards = new Map()
    this._empty = make('p', { className: 'empty card' }, emptyText)
    parent.append(this._empty)
  }

  // `workouts`: [{ workout_id, title, status, participants, sets, mode }], those to be shown.
  show (workouts) {
    const wanted = new Set(workouts.map((it) => it.workout_id))
    for (const [id, card] of this._cards) {
      if (!wanted.has(id)) {
        card.close()
        this._cards.delete(id)
      }
    }
    for (const workout of workouts) {
      let card = this._cards.get(workout.workout_id)
      if (!card) {
        card = new Card(this._parent)
        this._cards.set(workout.workout_id, card)
      }
      card.describe(workout)
    }
    this._empty.hidden = workouts.length > 0
  }

  showProgress (value) {
    this._cards.get(value.workout_id)?.showProgress(value)
  }

  // Its progress is not for us to see.
  showDenied (workoutId, reason) {
    this._cards.get(workoutId)?.showNote(reason)
  }
}

class Card {
  constructor (parent) {
    this._times = []
    this._values = new Map()
    this._title = make('h3')
    this._about = make('p', { className: 'quiet' })
    this._note = make('p', { className: 'quiet', hidden: true })
    this._box = make('div', { className: 'chart', role: 'img', hidden: true })
    this._table = make('table', { hidden: true })
    this._element = make('article', { className: 'card workout' }, this._title, this._about, this._box, this._table, this._note)
    parent.append(this._element)
  }

  describe ({ title, status, participants, sets, mode }) {
    setText(this._title, title || 'Untitled')
    const people = Number.isFinite(participants) ? `${participants} ${participants === 1 ? 'lifter' : 'lifters'}` : ''
    const done = Number.isFinite(sets) ? `${sets} sets` : ''
    setText(this._about, [status, mode, people, done].filter(Boolean).join(' · '))
  }

  showNote (text) {
    this._note.hidden = false
    setText(this._note, text)
  }

  showProgress ({ progress, server_time: at }) {
    this._note.hidden = true
    for (const id of Object.keys(progress)) {
      if (!this._values.has(id)) this._values.set(id, this._times.map(() => null))
    }
    if (at <= this._times.at(-1)) return
    this._times.push(at)
    for (const [id, values] of this._values) values.push(progress[id]?.volume_kg ?? values.at(-1) ?? null)
    if (this._times.length > MOST_POINTS) {
      this._times.shift()
      for (const values of this._values.values()) values.shift()
    }
    this._showTable(progress)
    this._draw()
  }

  close () {
    this._chart?.close()
    this._element.remove()
  }

  _showTable (progress) {
    this._table.hidden = false
    const ids = [...this._values.keys()]
    fillTable(this._table, COLUMNS, ids.map((id, at) => {
      const { sets_done: done, sets_planned: planned, volume_kg: volume, records } = progress[id] ?? {}
      return [
        { text: names.get(id) ?? id, className: `text key ${colour(at)}` },
        planned ? `${done} of ${planned}` : format.number(done),
        `${format.number(volume)} kg`,
        format.number(records?.length ?? 0)
      ]
    }), 'Nobody has begun')
  }

  _draw () {
    const box = this._box
    if (box.hidden) {
      box.hidden = false
      this._chart = new Chart(box, { height: 150, hasSteps: true })
    }
    // One point is no line: the first one is shown as if it had been there a moment before.
    const single = this._times.length === 1
    const times = single ? [this._times[0] - 1_000, this._times[0]] : this._times
    const lines = [...this._values.values()].slice(0, MOST_LINES).map((values, at) => ({
      colour: colour(at),
      values: single ? [values[0], values[0]] : values
    }))
    this._chart.draw(times, lines)
    box.setAttribute('aria-label', `Volume over time: ${[...this._values].map(([id, values]) => `${names.get(id) ?? id} ${format.number(values.at(-1))} kg`).join(', ')}`)
  }
}

function colour (at) {
  return `line-${at % LINES + 1}`
}
