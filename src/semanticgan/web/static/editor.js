// A label map over a picture on one canvas: drawing, filling, undo, zoom. Knows nothing of the server.

const UNDO_STEPS = 100, UNDO_BYTES = 2e8, ZOOM_MOST = 64

export class Editor {
  constructor(canvas, changed) {
    this.canvas = canvas
    this.ctx = canvas.getContext('2d')
    this.changed = changed // called after every change of the label map
    this.overlay = document.createElement('canvas')
    this.tool = 'brush'; this.klass = 1; this.size = 8; this.opacity = 0.5
    this.colours = []; this.visible = new Array(256).fill(true)
    this.width = 0; this.height = 0; this.label = new Uint8Array(0)
    this.base = null; this.preview = null
    this.scale = 1; this.x = 0; this.y = 0
    this.undos = []; this.redos = []
    this.pointers = new Map(); this.stroke = null; this.cursor = null
    this.listen()
  }

  // ---------------------------------------------------------------- what is shown

  open(base, width, height) {
    this.width = this.overlay.width = width
    this.height = this.overlay.height = height
    this.octx = this.overlay.getContext('2d')
    this.label = new Uint8Array(width * height)
    this.base = base; this.preview = null; this.undos = []; this.redos = []
    this.stroke = null; this.cursor = null
    this.fit()
    this.refresh()
    this.changed()
  }

  // Another map for all of the picture.
  replace(label, undoable = true) {
    const before = this.label.slice()
    this.label.set(label)
    if (undoable) this.remember(before, 0, 0, this.width, this.height)
    this.refresh()
    this.changed()
  }

  refresh(x0 = 0, y0 = 0, x1 = this.width, y1 = this.height) {
    if (x1 <= x0 || y1 <= y0) return
    const picture = this.octx.createImageData(x1 - x0, y1 - y0)
    const out = new Uint32Array(picture.data.buffer), row = x1 - x0
    const table = this.table()
    for (let y = y0; y < y1; y++) {
      for (let x = x0, o = (y - y0) * row, i = y * this.width + x0; x < x1; x++) out[o++] = table[this.label[i++]]
    }
    this.octx.putImageData(picture, x0, y0)
    this.draw()
  }

  // Class id -> colour as the bytes red, green, blue, opacity; class 0 and hidden classes are clear.
  table() {
    const bytes = new Uint8Array(1024)
    for (let k = 0; k < 256; k++) {
      const colour = k === 255 ? [255, 255, 255] : this.colours[k]
      if (k > 0 && colour && this.visible[k]) bytes.set([...colour, 255], 4 * k)
    }
    return new Uint32Array(bytes.buffer)
  }

  // A map on its way, of any size, shown in place of the label map; null: the label map again.
  show(label, width, height) {
    if (!label) { this.preview = null; this.draw(); return }
    const canvas = document.createElement('canvas')
    canvas.width = width; canvas.height = height
    const ctx = canvas.getContext('2d'), picture = ctx.createImageData(width, height)
    const out = new Uint32Array(picture.data.buffer), table = this.table()
    for (let i = 0; i < out.length; i++) out[i] = table[label[i]]
    ctx.putImageData(picture, 0, 0)
    this.preview = canvas
    this.draw()
  }

  draw() {
    if (this.waiting) return
    this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.drawNow() })
  }

  drawNow() {
    const { ctx, canvas } = this, ratio = devicePixelRatio || 1
    ctx.setTransform(1, 0, 0, 1, 0, 0)
    ctx.clearRect(0, 0, canvas.width, canvas.height)
    if (!this.width) return
    ctx.setTransform(this.scale * ratio, 0, 0, this.scale * ratio, this.x * ratio, this.y * ratio)
    ctx.imageSmoothingEnabled = this.scale < 3
    ctx.fillStyle = '#fff'  // as the model sees what is transparent
    ctx.fillRect(0, 0, this.width, this.height)
    if (this.base) ctx.drawImage(this.base, 0, 0, this.width, this.height)
    ctx.imageSmoothingEnabled = false
    ctx.globalAlpha = this.opacity
    ctx.drawImage(this.preview || this.overlay, 0, 0, this.width, this.height)
    ctx.globalAlpha = 1
    if (this.cursor) this.drawCursor()
  }

  drawCursor() {
    const { ctx } = this, radius = this.tool === 'brush' || this.tool === 'erase' ? this.size / 2 : 1
    for (const [colour, width] of [['#000', 3], ['#fff', 1]]) {
      ctx.strokeStyle = colour; ctx.lineWidth = width / this.scale
      ctx.beginPath(); ctx.arc(this.cursor.x, this.cursor.y, Math.max(radius, 2 / this.scale), 0, 7); ctx.stroke()
    }
  }

  // ---------------------------------------------------------------- zoom and move

  fit() {
    const box = this.canvas.getBoundingClientRect()
    if (!box.width || !this.width) return
    this.scale = Math.min(box.width / this.width, box.height / this.height)
    this.x = (box.width - this.width * this.scale) / 2
    this.y = (box.height - this.height * this.scale) / 2
    this.draw()
  }

  zoom(factor, at) {
    const box = this.canvas.getBoundingClientRect()
    const p = at || { x: box.width / 2, y: box.height / 2 }
    const least = Math.min(box.width / this.width, box.height / this.height, 1) / 2
    const scale = Math.min(ZOOM_MOST, Math.max(least, this.scale * factor))
    this.x = p.x - (p.x - this.x) * scale / this.scale
    this.y = p.y - (p.y - this.y) * scale / this.scale
    this.scale = scale
    this.draw()
  }

  pan(dx, dy) { this.x += dx; this.y += dy; this.draw() }

  resize() {
    const box = this.canvas.getBoundingClientRect(), ratio = devicePixelRatio || 1
    if (!box.width) return
    const fresh = this.canvas.width !== Math.round(box.width * ratio) || this.canvas.height !== Math.round(box.height * ratio)
    this.canvas.width = Math.round(box.width * ratio)
    this.canvas.height = Math.round(box.height * ratio)
    if (fresh) this.fit()
    this.drawNow()
  }

  // ---------------------------------------------------------------- drawing

  begin(p) {
    this.end()
    this.preview = null
    this.stroke = { before: this.label.slice(), box: [this.width, this.height, 0, 0], last: p }
    if (this.tool === 'fill') { this.fill(Math.floor(p.x), Math.floor(p.y)); this.end() } else this.line(p, p)
  }

  extend(p) { if (this.stroke) { this.line(this.stroke.last, p); this.stroke.last = p } }

  end() {
    if (!this.stroke) return
    const { before, box: [x0, y0, x1, y1] } = this.stroke
    this.stroke = null
    if (x1 > x0 && y1 > y0) { this.remember(before, x0, y0, x1, y1); this.changed() }
  }

  // Ends a stroke that goes on; until the pointer is lifted its moves do nothing.
  finish() {
    if (!this.stroke) return
    this.end()
    this.pointers.clear()
  }

  cancel() {
    if (!this.stroke) return
    this.label.set(this.stroke.before)
    this.refresh(...this.stroke.box)
    this.stroke = null
  }

  line(a, b) {
    const radius = this.size / 2, far = Math.hypot(b.x - a.x, b.y - a.y), n = Math.ceil(far / Math.max(1, radius / 2)) || 1
    const value = this.tool === 'erase' ? 0 : this.klass
    const box = [this.width, this.height, 0, 0]
    for (let k = 0; k <= n; k++) this.stamp(a.x + (b.x - a.x) * k / n, a.y + (b.y - a.y) * k / n, radius, value, box)
    this.touched(box)
  }

  stamp(cx, cy, radius, value, box) {
    const { width, height, label } = this
    if (radius < 1) {  // the pixel that the point lies in
      const x = Math.floor(cx), y = Math.floor(cy)
      if (x < 0 || y < 0 || x >= width || y >= height) return
      label[y * width + x] = value
      grow(box, x, y, x + 1, y + 1)
      return
    }
    const y0 = Math.max(0, Math.floor(cy - radius)), y1 = Math.min(height - 1, Math.floor(cy + radius))
    for (let y = y0; y <= y1; y++) {
      const reach = Math.sqrt(Math.max(0, radius * radius - (y + 0.5 - cy) ** 2))
      const x0 = Math.max(0, Math.ceil(cx - reach - 0.5)), x1 = Math.min(width - 1, Math.floor(cx + reach - 0.5))
      if (x1 < x0) continue
      label.fill(value, y * width + x0, y * width + x1 + 1)
      grow(box, x0, y, x1 + 1, y + 1)
    }
  }

  // All pixels of one class that hang together with (x, y).
  fill(x, y) {
    const { width, height, label } = this
    if (x < 0 || y < 0 || x >= width || y >= height) return
    const from = label[y * width + x], to = this.klass, box = [width, height, 0, 0], todo = [x, y]
    if (from === to) return
    while (todo.length) {
      const row = todo.pop() * width, at = todo.pop(), yy = row / width
      if (label[row + at] !== from) continue
      let x0 = at, x1 = at
      while (x0 > 0 && label[row + x0 - 1] === from) x0--
      while (x1 < width - 1 && label[row + x1 + 1] === from) x1++
      label.fill(to, row + x0, row + x1 + 1)
      grow(box, x0, yy, x1 + 1, yy + 1)
      for (const next of [yy - 1, yy + 1]) {
        if (next < 0 || next >= height) continue
        for (let i = x0, inside = false; i <= x1; i++) {
          const same = label[next * width + i] === from
          if (same && !inside) todo.push(i, next)
          inside = same
        }
      }
    }
    this.touched(box)
  }

  touched(box) {
    if (box[2] <= box[0]) return
    grow(this.stroke.box, ...box)
    this.refresh(...box)
  }

  // ---------------------------------------------------------------- undo

  remember(before, x0, y0, x1, y1) {
    this.undos.push(this.patch(before, x0, y0, x1, y1))
    this.redos = []
    let bytes = this.undos.reduce((sum, p) => sum + p.values.length, 0)
    const full = () => this.undos.length > UNDO_STEPS || bytes > UNDO_BYTES
    while (this.undos.length > 1 && full()) bytes -= this.undos.shift().values.length
  }

  patch(label, x0, y0, x1, y1) {
    const values = new Uint8Array((x1 - x0) * (y1 - y0))
    for (let y = y0; y < y1; y++) values.set(label.subarray(y * this.width + x0, y * this.width + x1), (y - y0) * (x1 - x0))
    return { values, x0, y0, x1, y1 }
  }

  undo() { this.finish(); this.swap(this.undos, this.redos) }

  redo() { this.finish(); this.swap(this.redos, this.undos) }

  swap(from, to) {
    const p = from.pop()
    if (!p) return
    to.push(this.patch(this.label, p.x0, p.y0, p.x1, p.y1))
    for (let y = p.y0; y < p.y1; y++) {
      this.label.set(p.values.subarray((y - p.y0) * (p.x1 - p.x0), (y - p.y0 + 1) * (p.x1 - p.x0)), y * this.width + p.x0)
    }
    this.preview = null
    this.refresh(p.x0, p.y0, p.x1, p.y1)
    this.changed()
  }

  // ---------------------------------------------------------------- pointer and keys

  at(event) {
    const box = this.canvas.getBoundingClientRect()
    return { x: event.clientX - box.left, y: event.clientY - box.top }
  }

  inside(p) { return { x: (p.x - this.x) / this.scale, y: (p.y - this.y) / this.scale } }

  listen() {
    const { canvas } = this
    new ResizeObserver(() => this.resize()).observe(canvas)
    canvas.addEventListener('pointerdown', event => {
      if (!this.width) return
      canvas.setPointerCapture(event.pointerId)
      this.pointers.set(event.pointerId, this.at(event))
      this.cursor = null
      if (this.pointers.size > 1) this.cancel()
      else if (event.button === 0 && this.tool !== 'move') this.begin(this.inside(this.at(event)))
    })
    canvas.addEventListener('pointermove', event => {
      const before = this.pointers.get(event.pointerId), now = this.at(event)
      if (!before) {
        if (event.pointerType === 'mouse' && this.width) { this.cursor = this.inside(now); this.draw() }
        return
      }
      if (this.stroke) {
        for (const e of event.getCoalescedEvents?.() || []) this.extend(this.inside(this.at(e)))
        this.extend(this.inside(now))
      } else this.drag(event.pointerId, before, now)
      this.pointers.set(event.pointerId, now)
    })
    for (const kind of ['pointerup', 'pointercancel']) {
      canvas.addEventListener(kind, event => {
        this.pointers.delete(event.pointerId)
        if (kind === 'pointerup') this.end(); else this.cancel()
      })
    }
    canvas.addEventListener('pointerleave', () => { this.cursor = null; this.draw() })
    canvas.addEventListener('wheel', event => {
      event.preventDefault()
      this.zoom(Math.exp(-event.deltaY / 400), this.at(event))
    }, { passive: false })
    canvas.addEventListener('keydown', event => this.key(event))
  }

  // One pointer moves the picture; two also zoom it round their middle.
  drag(id, before, now) {
    const other = [...this.pointers].find(([key]) => key !== id)
    if (other) {
      const far = p => Math.hypot(p.x - other[1].x, p.y - other[1].y)
      if (far(before) > 1) this.zoom(far(now) / far(before), other[1])
      this.pan((now.x - before.x) / 2, (now.y - before.y) / 2)
    } else this.pan(now.x - before.x, now.y - before.y)
  }

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }
    if (!this.width || !(event.key in moves || event.key === ' ')) return
    event.preventDefault()
    this.cursor = this.cursor || { x: this.width / 2, y: this.height / 2 }
    if (event.key === ' ') {
      if (this.tool !== 'move') { this.finish(); this.begin(this.cursor); this.end() }
      return
    }
    const [dx, dy] = moves[event.key]
    const far = (event.shiftKey ? 10 : 1) * Math.max(1, Math.round(4 / this.scale))  // 4 pixels of the screen
    if (this.tool === 'move') { this.pan(-dx * 20, -dy * 20); return }
    this.cursor = {
      x: Math.min(this.width - 0.5, Math.max(0.5, this.cursor.x + dx * far)),
      y: Math.min(this.height - 0.5, Math.max(0.5, this.cursor.y + dy * far)),
    }
    const box = this.canvas.getBoundingClientRect()
    const x = this.x + this.cursor.x * this.scale, y = this.y + this.cursor.y * this.scale
    this.pan(Math.max(0, -x) - Math.max(0, x - box.width), Math.max(0, -y) - Math.max(0, y - box.height))  // it stays in view
    this.draw()
  }
}

function grow(box, x0, y0, x1, y1) {
  box[0] = Math.min(box[0], x0); box[1] = Math.min(box[1], y0)
  box[2] = Math.max(box[2], x1); box[3] = Math.max(box[3], y1)
}
