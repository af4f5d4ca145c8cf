// What the server sends becomes text of elements, and nothing else: no markup is ever made of it.

export const $ = (id) => document.getElementById(id)

// An element: make('p', { className: 'hint' }, 'text', child).
export function make (tag, properties = {}, ...children) {
  const element = document.createElement(tag)
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes('-') || key === 'role') element.setAttribute(key, value)
    else element[key] = value
  }
  element.append(...children)
  return element
}

export function setText (element, text) {
  if (element.textContent !== text) element.textContent = text
}

// A table of texts that keeps its cells, so that what somebody has selected stays selected.
// `columns` are headings; one that ends in `#` has numbers. A cell may be { text, className }.
export function fillTable (table, columns, rows, emptyText) {
  if (!table.tHead) {
    const head = make('tr', {}, ...columns.map((name) =>
      make('th', { scope: 'col', className: name.endsWith('#') ? 'number' : '' }, name.replace('#', ''))))
    table.append(make('thead', {}, head), make('tbody'))
  }
  const body = table.tBodies[0]
  table.tHead.hidden = rows.length === 0
  if (rows.length === 0) {
    if (!body.querySelector('.empty')) {
      body.replaceChildren(make('tr', { className: 'empty' }, make('td', { colSpan: columns.length }, emptyText)))
    }
    return
  }
  body.querySelector('.empty')?.remove()
  while (body.rows.length > rows.length) body.lastElementChild.remove()
  rows.forEach((cells, at) => {
    const row = body.rows[at] ?? body.insertRow()
    cells.forEach((cell, column) => {
      const { text, className = '' } = typeof cell === 'object' ? cell : { text: cell }
      const td = row.cells[column] ?? row.insertCell()
      setText(td, text)
      const wanted = columns[column].endsWith('#') ? `number ${className}` : className
      if (td.className !== wanted) td.className = wanted
    })
  })
}

// A list whose items are made once, by their keys: what is announced is what is new.
export function fillList (list, items, keyOf, fill, emptyText) {
  const known = new Map([...list.children].map((item) => [item.dataset.key, item]))
  const wanted = items.map((item) => {
    const key = keyOf(item)
    const element = known.get(key) ?? make('li')
    element.dataset.key = key
    fill(element, item)
    return element
  })
  if (wanted.length === 0) wanted.push(known.get('') ?? make('li', { className: 'empty' }, emptyText))
  if (items.length === 0) wanted[0].dataset.key = ''
  const isSame = wanted.length === list.children.length &&
    wanted.every((element, at) => element === list.children[at])
  if (!isSame) list.replaceChildren(...wanted)
}
