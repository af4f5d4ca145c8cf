// node run.mjs FILE SCENARIO: plays one exported scenario of FILE, and exits with 1 if it fails.

import { closeAll, story } from './lib.mjs'

const DEADLINE_MS = 45_000

function fail (error) {
  console.error(error)
  console.error(`\nWhat the clients were told, oldest first:\n${story()}`)
  process.exit(1)
}

const [file, name] = process.argv.slice(2)
process.on('unhandledRejection', fail)
setTimeout(() => fail(new Error(`${name} is not done after ${DEADLINE_MS} ms`)), DEADLINE_MS)
try {
  const scenarios = await import(`./${file}`)
  if (typeof scenarios[name] !== 'function') throw new Error(`${file} has no scenario ${name}`)
  await scenarios[name]()
  closeAll()
} catch (error) {
  fail(error)
}
process.exit(0)
