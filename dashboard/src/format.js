// Numbers and times as people read them.

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 })
const short = new Intl.NumberFormat('en', { maximumFractionDigits: 1 })

export const NOTHING = '–'

export function number (value) {
  if (!Number.isFinite(value)) return NOTHING
  return (Math.abs(value) < 100 ? short : whole).format(value)
}

export function bytes (value) {
  if (!Number.isFinite(value)) return NOTHING
  if (value < 1024) return `${value} B`
  if (value < 1024 ** 2) return `${number(value / 1024)} KiB`
  return `${number(value / 1024 ** 2)} MiB`
}

// 4 s, 3 min, 5 h, 2 d
export function duration (ms) {
  if (!Number.isFinite(ms)) return NOTHING
  const s = Math.max(0, Math.round(ms / 1_000))
  if (s < 60) return `${s} s`
  if (s < 3_600) return `${Math.floor(s / 60)} min`
  if (s < 86_400) return `${Math.floor(s / 3_600)} h ${Math.floor(s % 3_600 / 60)} min`
  return `${Math.floor(s / 86_400)} d ${Math.floor(s % 86_400 / 3_600)} h`
}

export function seconds (s) {
  return Number.isFinite(s) ? duration(s * 1_000) : NOTHING
}

export function clock (ms) {
  return Number.isFinite(ms) ? new Date(ms).toLocaleTimeString('en-GB') : NOTHING
}

export function day (ms) {
  return Number.isFinite(ms) ? new Date(ms).toLocaleDateString('en-GB', { day: 'numeric', month: 'short', year: 'numeric' }) : NOTHING
}

// Records are kept by the library's id of an exercise, or by its name: `name:squat`.
export function exercise (key) {
  return String(key ?? '').replace(/^(name|id):/, '')
}

const RECORDS = {
  weight: ['heaviest', 'kg'],
  volume: ['most in a set', 'kg'],
  e1rm: ['best estimated maximum', 'kg'],
  reps: ['most reps', ''],
  seconds: ['longest', 's'],
  distance: ['farthest', 'm']
}

// "heaviest: 100 kg"
export function record (type, value) {
  const [name, unit] = RECORDS[type] ?? [type, '']
  return `${name}: ${number(value)} ${unit}`.trim()
}
