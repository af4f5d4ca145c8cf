// Checks an AsyncAPI document, given on stdin, with the official parser. Prints what is wrong with
// it as a JSON list of texts; what is only advised (severity 2 and above) is left out.

import { readFileSync } from 'node:fs'

import { Parser } from '@asyncapi/parser'

const WARNING = 1

const { diagnostics } = await new Parser().parse(readFileSync(0, 'utf8'))
const faults = diagnostics.filter((diagnostic) => diagnostic.severity <= WARNING)
console.log(JSON.stringify(faults.map(({ message, path }) => `${path.join('/')}: ${message}`)))
