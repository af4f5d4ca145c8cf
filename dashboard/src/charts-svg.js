// Charts drawn here: what `charts.js` is where npm has not brought uPlot. The same class as in
// charts-uplot.js, without axes but for the greatest value.

import { number } from './format.js'

const SVG = 'http://www.w3.org/2000/svg'
const WIDTH = 300

export class Chart {
  constructor (container, { height, hasSteps = false }) {
    this._hasSteps = hasSteps
    this._height = height
    this._svg = svg('svg', { viewBox: `0 0 ${WIDTH} ${height}`, preserveAspectRatio: 'none', class: 'plain-chart', height })
    this._most = document.createElement('span')
    this._most.className = 'most'
    container.append(this._most, this._svg)
  }

  draw (times, lines) {
    const most = Math.max(0, ...lines.flatMap((line) => line.values.filter(Number.isFinite)))
    const from = times[0]
    const span = Math.max(1, times.at(-1) - from)
    const x = (time) => ((time - from) / span * WIDTH).toFixed(1)
    const y = (value) => ((1 - value / (most * 1.1 || 1)) * (this._height - 2) + 1).toFixed(1)
    this._most.textContent = number(most)
    this._svg.replaceChildren(...lines.map(({ colour, values }) => {
      const points = []
      let last = null
      times.forEach((time, at) => {
        if (!Number.isFinite(values[at])) return
        if (this._hasSteps && last !== null) points.push(`${x(time)},${y(last)}`)
        points.push(`${x(time)},${y(values[at])}`)
        last = values[at]
      })
      return svg('polyline', { points: points.join(' '), class: colour })
    }))
  }

  close () {
    this._svg.remove()
    this._most.remove()
  }
}

function svg (tag, attributes) {
  const element = document.createElementNS(SVG, tag)
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value)
  return element
}
