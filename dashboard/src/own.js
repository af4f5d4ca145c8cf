// What somebody without the admin role sees: their own training, by `user:<id>:progress`.

import { $, fillTable, make, setText } from './dom.js'
import * as format from './format.js'

const LIVE = ['active', 'paused']

export class OwnView {
  constructor () {
    this._figures = make('dl', { className: 'card figures' })
    $('own-tiles').append(this._figures)
    this._values = ['Workouts', 'Sets', 'Volume'].map((name) => {
      const value = make('dd')
      this._figures.append(make('div', {}, make('dt', {}, name), value))
      return value
    })
  }

  note (reason) {
    setText($('own-note'), `How the server is doing is for admins only (${reason}). To see that, give an admin's token. Here is your own training.`)
  }

  // Returns: the live workouts, as `system:health` lists them.
  show ({ workouts = [], records = {}, totals = {} }) {
    const figures = [format.number(totals.workouts), format.number(totals.sets), `${format.number(totals.volume_kg)} kg`]
    figures.forEach((text, at) => setText(this._values[at], text))
    fillTable($('own-workouts'), ['Workout', 'When', 'Status', 'Sets#', 'Volume#'], workouts.map((it) => [
      { text: it.title || 'Untitled', className: 'text' },
      format.day(it.started_at),
      it.status,
      format.number(it.sets),
      `${format.number(it.volume_kg)} kg`
    ]), 'No workout yet')
    fillTable($('own-records'), ['Exercise', 'Record'], Object.entries(records).map(([exercise, byType]) => [
      { text: format.exercise(exercise), className: 'text' },
      { text: Object.entries(byType).map(([type, { value }]) => format.record(type, value)).join(', '), className: 'text' }
    ]), 'No record yet')
    return workouts.filter((it) => LIVE.includes(it.status))
  }
}
