// The page: what its parts do. Text from outside goes in as text, never as markup.
import { Editor } from '/editor.js'
import { Folder } from '/folder.js'
import { samples } from '/samples.js'
import { $, MAX_BYTES, address, ask, begun, image, listen, say, scaled, tried, unrolled } from '/server.js'
import { giveMask, giveNumbers, giveOverlay } from '/takeaway.js'

let about = null, open = null, stream = null, asked = 0
const editor = new Editor($('stage'), () => {
  $('undo').disabled = !editor.undos.length
  $('redo').disabled = !editor.redos.length
  if (open) { open.version++; shares() }
})
const folder = new Folder(name => openImage(name), ignore => coded(ignore))

// ---------------------------------------------------------------- pictures in

const drop = tried(async file => {
  if (!mayLeave()) return
  if (file.size > MAX_BYTES) throw new Error(`${file.name}: larger than ${MAX_BYTES / 2 ** 20} MiB; make it smaller`)
  const turn = ++asked, version = open?.version
  say(`${file.name}: looking at it.`)
  const began = performance.now()
  const response = await ask('/api/pictures', { name: file.name }, { method: 'POST', body: file })
  const found = await response.json()
  const own = await createImageBitmap(file).catch(() => null)
  const fits = own && !found.stretched && own.width === found.size[0] && own.height === found.size[1]
  const base = fits ? own : await image(address('/api/picture', { id: found.id }))
  if (turn !== asked || open?.version !== version && !mayLeave()) return
  show(found, base, null)
  say(`${found.name}: label map after ${((performance.now() - began) / 1000).toFixed(2)} s.`)
  refine()
})

const unsaved = () => Boolean(open) && open.version !== open.savedVersion

// What is on the screen is the model's or the folder's: it is there again when it has been left.
function settle() { open.savedVersion = open.version }

// Whether the picture that is open may be left.
function mayLeave() {
  return !unsaved() || confirm(`${open.inFolder ? 'The mask of' : 'What you drew on'} ${open.name} is not saved. Leave it?`)
}

const openImage = tried(async name => {
  const turn = ++asked
  await saves.get(name)  // so that it is shown as it has been saved
  if (turn !== asked || !mayLeave()) return
  const version = open?.version
  say(`${name}: looking at it.`)
  let found, base, mask = null, trouble = ''
  try {
    found = await (await ask('/api/data/open', { image: name }, { method: 'POST' })).json()
    base = await image(address('/api/data/picture', { image: name }))
    if (found.labeled) await storedMask(name, found.size).then(label => { mask = label }, error => { trouble = error.message })
  } finally {
    if (turn === asked) folder.past(name)
  }
  if (turn !== asked || open?.version !== version && !mayLeave()) return
  show(found, base, name, mask)
  $('title').focus()
  if (trouble) say(`${trouble} The model's label map is shown.`, true)
  else say(mask ? `${name}: the mask in the folder.` : `${name}: the model's label map. Correct it and save.`)
  coded(found.ignore)
})

async function storedMask(name, [width, height]) {
  const response = await ask('/api/data/mask', { image: name })
  const label = new Uint8Array(await response.arrayBuffer())
  const fits = Number(response.headers.get('X-Width')) === width && label.length === width * height
  if (!fits) throw new Error(`${name}: its mask has another size.`)
  return label
}

function show(found, picture, inFolder, mask = null) {
  stop()
  const [width, height] = found.size
  open = {
    id: found.id, name: found.name, inFolder, width, height, picture, masks: [], answer: found.answer,
    version: 0, savedVersion: 0, // the first only grows: with every change of the label map
    chosen: Boolean(mask), // by a person: no refinement puts its own map in its place
  }
  view('image')
  $('work').hidden = false
  $('title').textContent = found.name
  $('saving').hidden = !inFolder
  $('saved').textContent = ''
  $('mask').replaceChildren()
  $('step').textContent = ''
  $('progress').value = 0
  editor.open(picture, width, height)
  editor.resize()
  if (found.answer) offer(quick(), found.answer)
  if (mask) offerLabel('in the folder', mask, width, height)
  if (open.masks.length) use(open.masks.length - 1, false)
  describe(found.answer)
  look()
  settle()
}

// ---------------------------------------------------------------- answers

const quick = () => about.student ? 'student' : 'encoder'
const whole = () => about.student ? 'student, as chosen' : 'encoder, all views'

function offer(name, answer) {
  const { width, height } = answer.label
  offerLabel(name, unrolled(answer.label), width, height, answer)
}

function offerLabel(name, label, width, height, answer = null) {
  const old = open.masks.findIndex(mask => mask.name === name)
  const mask = { name, label, width, height, answer }
  if (old < 0) open.masks.push(mask); else open.masks[old] = mask
  const { value } = $('mask')
  $('mask').replaceChildren(...open.masks.map(({ name }, k) => new Option(name, k)))
  $('mask').value = value
}

function use(k, undoable = true) {
  const { label, width, height, answer } = open.masks[k]
  $('mask').value = k
  editor.show(null)
  editor.replace(scaled(label, width, height, open.width, open.height), undoable)
  describe(answer || open.answer)
}

function choose(k) {
  editor.finish()
  const drawn = unsaved()
  use(k)
  open.chosen = true
  if (!drawn && !open.inFolder) settle()
}

// Words on how well G knows the image belong to the picture: further steps do not change them.
function describe(answer) {
  if (answer) open.answer = answer
  if (answer?.words) open.verdict = { words: answer.words, distance_rank: answer.distance_rank }
  if (!answer) { $('words').textContent = 'This model has no encoder: refine to see a label map.'; return }
  const distance = answer.distance === undefined ? 'U' : `Distance ${answer.distance.toFixed(3)}, u`
  $('words').textContent = `${open.verdict?.words ?? ''} ${distance}ncertainty ${(100 * answer.uncertainty).toFixed(1)} %.`
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
  const mayShow = () => !mine.chosen && !unsaved() && !editor.stroke // never in place of a person's work
  const showMask = name => {
    if (!mayShow()) return
    use(mine.masks.findIndex(mask => mask.name === name))
    settle()
  }
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

// The label map as a person sees it.
function seen() {
  if (editor.preview) throw new Error('What is shown is on its way: let the refinement end or stop it, then try again.')
  editor.finish()
  return editor.label
}

const getMask = tried(async () => {
  const label = seen(), mine = open, { version } = mine
  await giveMask(mine, label)
  if (!mine.inFolder) mine.savedVersion = version
})

const getOverlay = tried(async () => { seen(); await giveOverlay(open, editor.overlay, editor.opacity) })

const getNumbers = tried(async () => giveNumbers(open, seen(), about))

// One after the other, each as it was when it was asked for.
let saving = Promise.resolve()
const saves = new Map() // name -> the last save of it
const save = tried(async () => {
  if (!open?.inFolder) return
  const body = seen().slice(), mine = open, { version } = mine
  mine.chosen = true
  saving = saving.then(() => write(mine, body, version))
  saves.set(mine.inFolder, saving)
})

const write = tried(async (mine, body, version) => {
  const { inFolder, width, height } = mine
  const done = await (await ask('/api/data/mask', { image: inFolder, width, height }, { method: 'PUT', body })).json()
  const text = `Saved ${done.mask}` + (done.kept ? `; the mask before is ${done.kept}.` : '.')
  say(`${text} ${done.labeled} of ${done.total} images have a mask.`)
  mine.savedVersion = version
  if (open !== mine) return  // another image has been opened meanwhile, or this one again
  $('saved').textContent = text
  offerLabel('in the folder', body, width, height)
  if (mine.version === version) $('mask').value = mine.masks.findIndex(mask => mask.name === 'in the folder')
})

async function next() {
  await saving
  if (about.data) folder.next(about.encoder, open?.inFolder)
}

// ---------------------------------------------------------------- the page itself

function view(name) {
  for (const part of ['image', 'folder', 'samples']) $(`view-${part}`).hidden = part !== name
  for (const button of document.querySelectorAll('nav button')) {
    if (button.dataset.view === name) button.setAttribute('aria-current', 'page'); else button.removeAttribute('aria-current')
  }
  if (name === 'folder') folder.list()
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
  if (!all.some(({ id }) => id === editor.klass)) editor.klass = 1
  editor.colours = about.classes.map(({ color }) => color)
  $('classes').replaceChildren(...all.map(({ name, color, id }) => {
    const item = document.createElement('li'), label = document.createElement('label'), radio = document.createElement('input')
    const swatch = document.createElement('span'), share = document.createElement('span')
    radio.type = 'radio'; radio.name = 'class'; radio.value = id; radio.checked = id === editor.klass
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

// What 255 means in the folder's masks changes when others write masks into it.
function coded(ignore) {
  if (ignore === about.data.ignore) return
  about.data.ignore = ignore
  classes()
  if (open) shares()
  say(ignore ? "The folder's masks hold class ids now: 255 is ignored."
    : "The folder's masks hold 0 and 255 alone now: 255 is class 1, and nothing can be marked as ignored.")
}

function shown(id, name) {
  const label = document.createElement('label'), box = document.createElement('input')
  box.type = 'checkbox'; box.checked = editor.visible[id]
  box.setAttribute('aria-label', `show ${name}`)
  box.addEventListener('change', () => { editor.visible[id] = box.checked; editor.refresh() })
  label.className = 'show'
  label.append(box, 'show')
  return label
}

function key(event) {
  const inField = event.target.matches('input:not([type=radio], [type=checkbox], [type=range]), select, textarea')
  const control = event.ctrlKey || event.metaKey
  if (!open || inField || !$('letters').checked && !control || event.altKey || $('view-image').hidden) return
  const name = event.key.toLowerCase()
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
  const all = selector => document.querySelectorAll(selector)
  for (const button of all('nav button')) button.addEventListener('click', () => view(button.dataset.view))
  for (const button of all('[data-tool]')) button.addEventListener('click', () => tool(button.dataset.tool))
  for (const radio of document.querySelectorAll('[name=base]')) radio.addEventListener('change', look)
  on('undo', 'click', () => editor.undo()); on('redo', 'click', () => editor.redo())
  on('zoom-in', 'click', () => editor.zoom(1.25)); on('zoom-out', 'click', () => editor.zoom(0.8))
  on('zoom-fit', 'click', () => editor.fit())
  on('size', 'input', event => size(Number(event.target.value)))
  on('opacity', 'input', event => opacity(Number(event.target.value)))
  on('refine', 'click', refine); on('stop', 'click', stop)
  on('mask', 'change', event => choose(Number(event.target.value)))
  on('get-mask', 'click', getMask); on('get-overlay', 'click', getOverlay); on('get-json', 'click', getNumbers)
  on('save', 'click', save); on('next', 'click', next)
  on('propose', 'click', () => folder.propose())
  on('which', 'change', () => folder.turn(0))
  on('before', 'click', () => folder.turn(-1)); on('after', 'click', () => folder.turn(1))
  on('reload', 'click', () => folder.list(true))
  on('sampling', 'submit', event => { event.preventDefault(); samples() })
  on('more', 'click', () => { $('seed').value = Number($('seed').value) + 1; samples() })
  on('psi', 'input', event => { $('psi-value').value = event.target.value })
  on('sample-opacity', 'input', event => {
    for (const map of document.querySelectorAll('.map')) map.style.opacity = event.target.value / 100
  })
  window.addEventListener('beforeunload', event => { if (unsaved()) event.preventDefault() })
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
    $('train').parentElement.hidden = !about.data.train
    view('folder')
  }
  say('Ready.')
})

wire()
begin()
