// The page: what its parts do. Text from outside goes in as text, never as markup.
import { Editor } from '/editor.js'
import { samples } from '/samples.js'
import { $, MAX_BYTES, address, ask, begun, image, listen, say, scaled, tried, unrolled } from '/server.js'

const COUNT = 24 // images in the folder's list at once

let about = null, open = null, stream = null, asked = 0, start = 0, queue = []
const editor = new Editor($('stage'), () => {
  $('undo').disabled = !editor.undos.length
  $('redo').disabled = !editor.redos.length
  if (open) { open.changes++; shares() }
})

// ---------------------------------------------------------------- pictures in

const drop = tried(async file => {
  if (!mayLeave()) return
  if (file.size > MAX_BYTES) throw new Error(`${file.name}: larger than ${MAX_BYTES / 2 ** 20} MiB; make it smaller`)
  const turn = ++asked
  say(`${file.name}: looking at it.`)
  const began = performance.now()
  const response = await ask('/api/pictures', { name: file.name }, { method: 'POST', body: file })
  const found = await response.json()
  const base = await createImageBitmap(file).catch(() => null)
  const fits = base && !found.stretched && base.width === found.size[0] && base.height === found.size[1]
  if (turn !== asked) return
  show(found, fits ? base : await image(address('/api/picture', { id: found.id })), null)
  say(`${found.name}: label map after ${((performance.now() - began) / 1000).toFixed(2)} s.`)
  refine()
})

// Whether the picture that is open may be left.
function mayLeave() {
  return !open?.inFolder || !open.changes || confirm(`The mask of ${open.name} is not saved. Leave it?`)
}

const openImage = tried(async name => {
  if (!mayLeave()) return
  const turn = ++asked
  say(`${name}: looking at it.`)
  const found = await (await ask('/api/data/open', { image: name }, { method: 'POST' })).json()
  const base = await image(address('/api/data/picture', { image: name }))
  let mask = null, trouble = ''
  if (found.labeled) await saved(name, found.size).then(label => { mask = label }, error => { trouble = error.message })
  if (turn !== asked) return
  show(found, base, name, mask)
  $('title').focus()
  if (trouble) say(`${trouble} The model's label map is shown.`, true)
  else say(mask ? `${name}: the mask in the folder.` : `${name}: the model's label map. Correct it and save.`)
})

async function saved(name, [width, height]) {
  const response = await ask('/api/data/mask', { image: name })
  const label = new Uint8Array(await response.arrayBuffer())
  if (Number(response.headers.get('X-Width')) !== width || label.length !== width * height) throw new Error(`${name}: its mask has another size.`)
  return label
}

function show(found, picture, inFolder, mask = null) {
  stop()
  const [width, height] = found.size
  open = { id: found.id, name: found.name, inFolder, width, height, picture, masks: [], answer: found.answer, changes: 0, labeled: Boolean(mask) }
  view('image')
  $('work').hidden = false
  $('title').textContent = found.name
  $('saving').hidden = !inFolder
  $('saved').textContent = ''
  $('step').textContent = ''
  $('progress').value = 0
  editor.open(picture, width, height)
  editor.resize()
  if (found.answer) offer(quick(), found.answer)
  if (mask) offerLabel('in the folder', mask, width, height)
  if (open.masks.length) use(open.masks.length - 1, false)
  describe(found.answer)
  look()
  open.changes = 0
}

// ---------------------------------------------------------------- answers

const quick = () => about.student ? 'student' : 'encoder', whole = () => about.student ? 'student, as chosen' : 'encoder, all views'

function offer(name, answer) {
  const { width, height } = answer.label
  offerLabel(name, unrolled(answer.label), width, height, answer)
}

function offerLabel(name, label, width, height, answer = null) {
  const old = open.masks.findIndex(mask => mask.name === name)
  const mask = { name, label, width, height, answer }
  if (old < 0) open.masks.push(mask); else open.masks[old] = mask
  $('mask').replaceChildren(...open.masks.map(({ name }, k) => new Option(name, k)))
}

function use(k, undoable = true) {
  const { label, width, height, answer } = open.masks[k]
  $('mask').value = k
  editor.show(null)
  editor.replace(scaled(label, width, height, open.width, open.height), undoable)
  open.changes = 0
  describe(answer || open.answer)
}

// Words on how well G knows the image belong to the picture: further steps do not change them.
function describe(answer) {
  if (answer) open.answer = answer
  if (answer?.words) open.verdict = { words: answer.words, distance_rank: answer.distance_rank }
  $('words').textContent = answer
    ? `${open.verdict?.words ?? ''} ${answer.distance === undefined ? 'U' : `Distance ${answer.distance.toFixed(3)}, u`}ncertainty ${(100 * answer.uncertainty).toFixed(1)} %.`
    : 'This model has no encoder: refine to see a label map.'
}

function shares() {
  const counts = new Array(256).fill(0)
  for (const k of editor.label) counts[k]++
  for (const out of document.querySelectorAll('.share')) {
    out.textContent = `${(100 * counts[out.dataset.id] / editor.label.length).toFixed(1)} %`
  }
}

const look = tried(async () => {
  const which = document.querySelector('[name=base]:checked').value, { answer, picture } = open
  const source = { reconstruction: answer?.reconstruction, uncertainty: answer?.uncertainty_map }[which]
  const base = source ? await image(source) : picture
  if (document.querySelector('[name=base]:checked').value === which) { editor.base = base; editor.draw() }
})

function refine() {
  if (!open) return
  stop()
  const steps = Math.min(1000, Math.max(1, Math.round(Number($('steps').value)) || about.steps)), mine = open
  const mayShow = () => !mine.changes && !mine.labeled && !editor.stroke // never in place of a person's work
  const showMask = name => { if (mayShow()) use(mine.masks.findIndex(mask => mask.name === name)) }
  $('stop').disabled = false
  $('step').textContent = 'Waiting for its turn.'
  stream = listen('/api/refine', { id: open.id, steps }, {
    waiting: ({ jobs }) => { if (jobs > 1) $('step').textContent = `Waiting for ${jobs - 1} others.` },
    answer: answer => {
      offer(whole(), answer)
      showMask(whole())
      look()
    },
    step: answer => {
      $('progress').value = answer.step / answer.steps
      $('step').textContent = `Step ${answer.step} of ${answer.steps}: distance ${answer.distance.toFixed(3)}`
      if (mayShow()) editor.show(unrolled(answer.label), answer.label.width, answer.label.height)
      describe(answer)
      look()
    },
    done: answer => {
      const name = `inversion, ${answer.step} steps`, best = about.chosen_steps > 0 || !about.encoder
      offer(name, answer)
      $('progress').value = 1
      $('step').textContent = `Step ${answer.step} of ${answer.steps}: distance ${answer.distance.toFixed(3)}. ` + (!mayShow()
        ? 'Choose its label map under Mask.'
        : best ? 'Its label map is shown.'
        : "On its validation images this model's masks were best without inversion, so the encoder's is shown.")
      showMask(best ? name : whole())
      look()
    },
    finished: () => { $('stop').disabled = true; editor.show(null) },
  })
}

function stop() {
  stream?.close()
  stream = null
}

// ---------------------------------------------------------------- masks out

function give(blob, name) {
  const link = document.createElement('a')
  link.href = URL.createObjectURL(blob)
  link.download = name
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 10000)
}

const stem = () => open.name.split('/').pop().replace(/\.[^.]*$/, '')

const getMask = tried(async () => {
  const query = { width: open.width, height: open.height, name: stem() }
  give(await (await ask('/api/mask.png', query, { method: 'POST', body: editor.label })).blob(), `${stem()}.png`)
})

const getOverlay = tried(async () => {
  const canvas = document.createElement('canvas')
  canvas.width = open.width; canvas.height = open.height
  const ctx = canvas.getContext('2d')
  ctx.fillStyle = '#fff'  // as the model sees what is transparent
  ctx.fillRect(0, 0, open.width, open.height)
  ctx.drawImage(open.picture, 0, 0, open.width, open.height)
  ctx.globalAlpha = editor.opacity
  ctx.drawImage(editor.overlay, 0, 0)
  give(await new Promise(done => canvas.toBlob(done)), `${stem()}-overlay.png`)
})

function getJson() {
  const counts = new Array(256).fill(0)
  for (const k of editor.label) counts[k]++
  const part = Object.fromEntries(about.classes.map(({ name }, k) => [name, counts[k] / editor.label.length]))
  const { distance, uncertainty } = open.answer || {}, { distance_rank, words } = open.verdict || {}
  const content = { image: open.name, model: about.model, size: [open.width, open.height], shares: part, distance, distance_rank, uncertainty, words }
  give(new Blob([JSON.stringify(content, null, 1)], { type: 'application/json' }), `${stem()}.json`)
}

// One after the other, each as it was when it was asked for.
let saving = Promise.resolve()
function save() {
  if (!open?.inFolder) return
  const { width, height, inFolder, changes } = open, body = editor.label.slice()
  saving = saving.then(() => write(inFolder, width, height, body, changes))
}

const write = tried(async (inFolder, width, height, body, changes) => {
  const done = await (await ask('/api/data/mask', { image: inFolder, width, height }, { method: 'PUT', body })).json()
  const text = `Saved ${done.mask}` + (done.kept ? `; the mask before is ${done.kept}.` : '.')
  $('saved').textContent = text
  say(`${text} ${done.labeled} of ${done.total} images have a mask.`)
  queue = queue.filter(name => name !== inFolder)
  if (open?.inFolder !== inFolder) return  // another image has been opened meanwhile
  offerLabel('in the folder', body, width, height)
  $('mask').value = open.masks.findIndex(mask => mask.name === 'in the folder')
  open.changes = Math.max(0, open.changes - changes)  // what was drawn meanwhile is not saved
  open.labeled = true
})

function next() {
  if (!about.data) return
  queue = queue.filter(name => name !== open?.inFolder)
  if (queue.length) openImage(queue[0])
  else propose(true)
}

// ---------------------------------------------------------------- folder

function thumbnail(name, note) {
  const item = document.createElement('li'), button = document.createElement('button'), img = new Image(128, 128)
  button.type = 'button'
  img.alt = ''
  img.loading = 'lazy'
  img.src = address('/api/data/thumbnail', { image: name })
  button.append(img, `${name}${note}`)
  button.addEventListener('click', () => openImage(name))
  item.append(button)
  return item
}

const list = tried(async (reload = false) => {
  const found = await (await ask('/api/data', { which: $('which').value, start, count: COUNT, ...(reload ? { reload } : {}) })).json()
  const last = Math.min(start + COUNT, found.found)
  $('count').textContent = `${found.found ? start + 1 : 0} to ${last} of ${found.found}; ${found.labeled} of ${found.total} images have a mask.`
  $('before').disabled = start === 0
  $('after').disabled = last >= found.found
  const shown = JSON.stringify(found.images)
  if ($('images').dataset.shown === shown) return  // a button that is replaced while it is pressed loses the click
  $('images').dataset.shown = shown
  $('images').replaceChildren(...found.images.map(({ name, labeled }) => thumbnail(name, labeled ? ' (has a mask)' : '')))
})

function propose(openFirst = false) {
  const bar = $('looking')
  bar.hidden = false
  bar.value = 0
  $('propose').disabled = true
  say('Looking at images without a mask.')
  listen('/api/next', { num: 10 }, {
    progress: ({ done, total }) => { bar.value = done / Math.max(1, total) },
    proposals: ({ images, of }) => {
      queue = images.map(({ name }) => name)
      $('proposals').replaceChildren(...images.map(({ name, uncertainty, distance }) =>
        thumbnail(name, `: uncertainty ${(100 * uncertainty).toFixed(0)} %, distance ${distance.toFixed(2)}`)))
      say(images.length ? `${images.length} proposals out of ${of} images.` : 'Every image has a mask.')
      if (openFirst && queue.length) openImage(queue[0])
    },
    finished: () => { bar.hidden = true; $('propose').disabled = false },
  })
}

// ---------------------------------------------------------------- the page itself

function view(name) {
  for (const part of ['image', 'folder', 'samples']) $(`view-${part}`).hidden = part !== name
  for (const button of document.querySelectorAll('nav button')) {
    if (button.dataset.view === name) button.setAttribute('aria-current', 'page'); else button.removeAttribute('aria-current')
  }
  if (name === 'folder') list()
  if (name === 'samples' && !$('samples').childElementCount) samples()
}

function tool(name) {
  editor.tool = name
  for (const button of document.querySelectorAll('[data-tool]')) button.setAttribute('aria-pressed', button.dataset.tool === name)
}

function size(value) {
  editor.size = Math.min(100, Math.max(1, value))
  $('size').value = $('size-value').value = editor.size
  editor.draw()
}

function opacity(value) {
  editor.opacity = value / 100
  $('opacity').value = value
  $('opacity-value').value = `${value} %`
  editor.draw()
}

function classes() {
  const all = about.classes.map(({ name, color }, id) => ({ name, color, id }))
  if (about.data?.ignore) all.push({ name: 'ignored', color: [255, 255, 255], id: 255 })
  editor.colours = about.classes.map(({ color }) => color)
  $('classes').replaceChildren(...all.map(({ name, color, id }) => {
    const item = document.createElement('li'), label = document.createElement('label'), radio = document.createElement('input')
    const swatch = document.createElement('span'), share = document.createElement('span')
    radio.type = 'radio'; radio.name = 'class'; radio.value = id; radio.checked = id === 1
    radio.addEventListener('change', () => { editor.klass = id })
    swatch.className = 'swatch'
    swatch.style.backgroundColor = `rgb(${color})`
    share.className = 'share'; share.dataset.id = id
    label.append(radio, swatch, name)
    item.append(label, share)
    if (id) item.append(shown(id, name))
    return item
  }))
}

function shown(id, name) {
  const label = document.createElement('label'), box = document.createElement('input')
  box.type = 'checkbox'; box.checked = true
  box.setAttribute('aria-label', `show ${name}`)
  box.addEventListener('change', () => { editor.visible[id] = box.checked; editor.refresh() })
  label.className = 'show'
  label.append(box, 'show')
  return label
}

function key(event) {
  const inField = event.target.matches('input:not([type=radio], [type=checkbox], [type=range]), select, textarea')
  if (!open || inField || !$('letters').checked && !(event.ctrlKey || event.metaKey) || event.altKey || $('view-image').hidden) return
  const name = event.key.toLowerCase(), control = event.ctrlKey || event.metaKey
  const actions = control
    ? { z: () => event.shiftKey ? editor.redo() : editor.undo(), y: () => editor.redo(), s: save }
    : {
        b: () => tool('brush'), e: () => tool('erase'), f: () => tool('fill'), m: () => tool('move'),
        '[': () => size(editor.size - 1), ']': () => size(editor.size + 1), u: () => editor.undo(), y: () => editor.redo(),
        '+': () => editor.zoom(1.25), '=': () => editor.zoom(1.25), '-': () => editor.zoom(0.8), 0: () => editor.fit(),
        o: () => opacity(editor.opacity ? 0 : 50), s: save, n: next,
      }
  if (!control && /^[1-9]$/.test(name)) actions[name] = () => document.querySelector(`[name=class][value="${name}"]`)?.click()
  if (actions[name]) { event.preventDefault(); actions[name]() }
}

function wire() {
  const on = (id, kind, action) => $(id).addEventListener(kind, action)
  on('file', 'change', event => { if (event.target.files[0]) drop(event.target.files[0]) })
  for (const kind of ['dragover', 'dragleave', 'drop']) {
    document.addEventListener(kind, event => {
      event.preventDefault()
      document.body.classList.toggle('dropping', kind === 'dragover')
      if (kind === 'drop' && event.dataTransfer.files[0]) drop(event.dataTransfer.files[0])
    })
  }
  document.addEventListener('keydown', key)
  for (const button of document.querySelectorAll('nav button')) button.addEventListener('click', () => view(button.dataset.view))
  for (const button of document.querySelectorAll('[data-tool]')) button.addEventListener('click', () => tool(button.dataset.tool))
  for (const radio of document.querySelectorAll('[name=base]')) radio.addEventListener('change', look)
  on('undo', 'click', () => editor.undo()); on('redo', 'click', () => editor.redo())
  on('zoom-in', 'click', () => editor.zoom(1.25)); on('zoom-out', 'click', () => editor.zoom(0.8)); on('zoom-fit', 'click', () => editor.fit())
  on('size', 'input', event => size(Number(event.target.value)))
  on('opacity', 'input', event => opacity(Number(event.target.value)))
  on('refine', 'click', refine); on('stop', 'click', stop)
  on('mask', 'change', event => { use(Number(event.target.value)); open.changes = 1 })
  on('get-mask', 'click', getMask); on('get-overlay', 'click', getOverlay); on('get-json', 'click', getJson)
  on('save', 'click', save); on('next', 'click', next)
  on('propose', 'click', () => propose())
  on('which', 'change', () => { start = 0; list() })
  on('before', 'click', () => { start = Math.max(0, start - COUNT); list() }); on('after', 'click', () => { start += COUNT; list() })
  on('reload', 'click', () => list(true))
  on('sampling', 'submit', event => { event.preventDefault(); samples() })
  on('more', 'click', () => { $('seed').value = Number($('seed').value) + 1; samples() })
  on('psi', 'input', event => { $('psi-value').value = event.target.value })
  on('sample-opacity', 'input', event => {
    for (const map of document.querySelectorAll('.map')) map.style.opacity = event.target.value / 100
  })
  window.addEventListener('beforeunload', event => { if (open?.inFolder && open.changes) event.preventDefault() })
}

const begin = tried(async () => {
  about = await (await ask('/api/about')).json()
  begun(about.start)
  $('model').textContent = `${about.model}, ${about.resolution} px`
  $('steps').value = about.steps
  for (const part of document.querySelectorAll('[data-needs=G]')) part.hidden = about.student
  for (const part of document.querySelectorAll('[data-needs=E]')) part.hidden = !about.encoder
  classes()
  if (about.data) {
    document.querySelector('[data-view=folder]').hidden = false
    $('train').textContent = about.data.train
    view('folder')
  }
  say('Ready.')
})

wire()
begin()
