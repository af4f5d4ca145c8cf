// Charts by uPlot: what `charts.js` is where npm has brought it. See charts-svg.js for the same
// without it.

import uPlot from './uPlot.js'

document.head.append(Object.assign(document.createElement('link'), {
  rel: 'stylesheet', href: '/dashboard/uPlot.css'
}))

const SECONDS = [1, 2, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 21_600]

const isDark = matchMedia('(prefers-color-scheme: dark)')

export class Chart {
  // `options`: height (px), hasSteps (a value holds until the next one).
  constructor (container, { height, hasSteps = false }) {
    this._container = container
    this._height = height
    this._hasSteps = hasSteps
    this._lineCount = 0
    this._resized = new ResizeObserver(() => this._fit())
    this._resized.observe(container)
    this._recolour = () => this._plot?.redraw(false, true)
    isDark.addEventListener('change', this._recolour)
  }

  // `times`: ms since the epoch; `lines`: [{ colour: 'line-1', values }], a value for each time or
  // null.
  draw (times, lines) {
    const data = [times, ...lines.map((line) => line.values)]
    if (lines.length !== this._lineCount) {
      this._plot?.destroy()
      this._plot = this._make(lines, data)
      this._lineCount = lines.length
    } else {
      this._plot.setData(data)
    }
  }

  close () {
    this._resized.disconnect()
    isDark.removeEventListener('change', this._recolour)
    this._plot?.destroy()
  }

  _make (lines, data) {
    const ink = this._colour('quiet')
    const grid = { stroke: this._colour('rule'), width: 1 }
    const axis = { stroke: ink, grid, ticks: { show: false }, font: '11px system-ui, sans-serif' }
    return new uPlot({
      width: this._width(),
      height: this._height,
      ms: 1,
      padding: [6, 22, 0, 0],
      legend: { show: false },
      cursor: { show: false },
      scales: { y: { range: (_, __, most) => [0, most > 0 ? most * 1.1 : 1] } },
      axes: [
        {
          ...axis,
          size: 22,
          incrs: SECONDS.map((s) => s * 1_000),
          space: (_, __, from, to) => to - from < 120_000 ? 75 : 50, // with seconds, or without
          values: (_, ticks, __, ___, step) => ticks.map((at) => timeOf(at, step))
        },
        { ...axis, size: 44, space: 26 }
      ],
      series: [{}, ...lines.map(({ colour }) => ({
        stroke: this._colour(colour),
        width: 2,
        points: { show: false },
        paths: this._hasSteps ? uPlot.paths.stepped({ align: 1 }) : undefined
      }))]
    }, data, this._container)
  }

  // A function, so that it is looked up again when the colours change.
  _colour (name) {
    return () => getComputedStyle(this._container).getPropertyValue(`--${name}`).trim()
  }

  _width () {
    return Math.max(120, Math.floor(this._container.clientWidth))
  }

  _fit () {
    if (this._plot && this._plot.width !== this._width()) {
      this._plot.setSize({ width: this._width(), height: this._height })
    }
  }
}

function timeOf (ms, step_ms) {
  return new Date(ms).toLocaleTimeString('en-GB').slice(0, step_ms < 60_000 ? 8 : 5)
}
