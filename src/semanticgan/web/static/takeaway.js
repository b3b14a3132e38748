// Files that the page gives: the mask, the picture with the label map over it, the numbers.
import { ask } from '/server.js'

const stem = open => open.name.split('/').pop().replace(/\.[^.]*$/, '')

function give(blob, name) {
  const link = document.createElement('a')
  link.href = URL.createObjectURL(blob)
  link.download = name
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 10000)
}

export async function giveMask(open, label) {
  const query = { width: open.width, height: open.height, name: stem(open) }
  give(await (await ask('/api/mask.png', query, { method: 'POST', body: label })).blob(), `${stem(open)}.png`)
}

export async function giveOverlay(open, map, opacity) {
  const canvas = document.createElement('canvas')
  canvas.width = open.width; canvas.height = open.height
  const ctx = canvas.getContext('2d')
  ctx.fillStyle = '#fff'  // as the model sees what is transparent
  ctx.fillRect(0, 0, open.width, open.height)
  ctx.drawImage(open.picture, 0, 0, open.width, open.height)
  ctx.globalAlpha = opacity
  ctx.drawImage(map, 0, 0)
  give(await new Promise(done => canvas.toBlob(done)), `${stem(open)}-overlay.png`)
}

export function giveNumbers(open, label, { model, classes }) {
  const counts = new Array(256).fill(0)
  for (const k of label) counts[k]++
  const shares = Object.fromEntries(classes.map(({ name }, k) => [name, counts[k] / label.length]))
  const { distance, uncertainty } = open.answer || {}, { distance_rank, words } = open.verdict || {}
  const size = [open.width, open.height]
  const content = { image: open.name, model, size, shares, distance, distance_rank, uncertainty, words }
  give(new Blob([JSON.stringify(content, null, 1)], { type: 'application/json' }), `${stem(open)}.json`)
}
