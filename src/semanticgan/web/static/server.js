// How the page asks the server, says what came, and reads what the server codes.

export const $ = id => document.getElementById(id)
export const MAX_BYTES = 64 * 2 ** 20
let start = '' // of the server: what was opened before it was started again is not for this one
const page = Array.from(crypto.getRandomValues(new Uint8Array(9)), v => v.toString(36)).join('')

export function address(path, query = {}) {
  return `${path}?${new URLSearchParams({ ...query, page })}`
}

export function begun(token) { start = token }

export async function ask(path, query, options = {}) {
  const response = await fetch(address(path, query), { ...options, headers: { 'X-Start': start } })
  if (response.ok) return response
  const text = await response.json().then(found => found.error).catch(() => response.statusText)
  throw new Error(text || `the server answered ${response.status}`)
}

// Events of a long job; `close()` on what is returned stops it.
export function listen(path, query, handlers) {
  const source = new EventSource(address(path, query))
  const finish = () => { source.close(); handlers.finished?.() }
  for (const [kind, handle] of Object.entries(handlers)) {
    if (kind !== 'finished') source.addEventListener(kind, event => handle(JSON.parse(event.data)))
  }
  source.addEventListener('failed', event => { finish(); say(JSON.parse(event.data), true) })
  source.addEventListener('end', finish)
  source.onerror = () => {
    finish()
    ask('/api/about').then(() => 'This broke off; try again.', () => 'The server does not answer. Is it still running?')
      .then(text => say(text, true))
  }
  return { close: finish }
}

export function say(text, bad = false) {
  $('status').textContent = text
  $('status').classList.toggle('bad', bad)
}

// Runs what a button does; what goes wrong is said.
export function tried(action) {
  return async (...args) => {
    try { await action(...args) } catch (error) { say(error.message, true) }
  }
}

export function unrolled({ width, height, runs }) {
  const out = new Uint8Array(width * height)
  for (let i = 0, k = 0; k < runs.length; k += 2) out.fill(runs[k], i, i += runs[k + 1])
  return out
}

// A label map at the size of the picture: each pixel takes the nearest one's class.
export function scaled(label, w, h, width, height) {
  if (w === width && h === height) return label
  const out = new Uint8Array(width * height)
  for (let y = 0, i = 0; y < height; y++) {
    const row = Math.min(h - 1, Math.floor((y + 0.5) * h / height)) * w
    for (let x = 0; x < width; x++) out[i++] = label[row + Math.min(w - 1, Math.floor((x + 0.5) * w / width))]
  }
  return out
}

export async function image(source) {
  const found = new Image()
  found.src = source
  await found.decode()
  return found
}
