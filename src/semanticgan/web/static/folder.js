// The folder's images: the list, the proposals, and which one comes next.
import { $, address, ask, listen, say, tried } from '/server.js'

const COUNT = 24 // images in the list at once

export class Folder {
  constructor(open, coded) {
    this.open = open // shows the image of this name
    this.coded = coded // takes whether the folder's masks can hold ignored pixels
    this.start = 0; this.queue = []; this.last = ''
  }

  // A name that has been opened, or could not be, comes no more.
  past(name) {
    this.last = name
    this.queue = this.queue.filter(other => other !== name)
  }

  next = tried(async (encoder, now) => {
    this.queue = this.queue.filter(name => name !== now)
    if (this.queue.length) this.open(this.queue[0])
    else if (encoder) this.propose(true)
    else {
      const { name } = await (await ask('/api/data/following', { image: this.last })).json()
      if (name) this.open(name); else say('No image is left to label.')
    }
  })

  thumbnail(name, note) {
    const item = document.createElement('li'), button = document.createElement('button'), img = new Image(128, 128)
    button.type = 'button'
    img.alt = ''
    img.loading = 'lazy'
    img.src = address('/api/data/thumbnail', { image: name })
    button.append(img, `${name}${note}`)
    button.addEventListener('click', () => this.open(name))
    item.append(button)
    return item
  }

  list = tried(async (reload = false) => {
    const { start } = this, query = { which: $('which').value, start, count: COUNT, ...(reload ? { reload } : {}) }
    const found = await (await ask('/api/data', query)).json(), last = Math.min(start + COUNT, found.found)
    this.coded(found.ignore)
    const range = `${found.found ? start + 1 : 0} to ${last} of ${found.found}`
    $('count').textContent = `${range}; ${found.labeled} of ${found.total} images have a mask.`
    $('before').disabled = start === 0
    $('after').disabled = last >= found.found
    const shown = JSON.stringify(found.images)
    if ($('images').dataset.shown === shown) return  // a button that is replaced while it is pressed loses the click
    $('images').dataset.shown = shown
    $('images').replaceChildren(...found.images.map(({ name, labeled }) => this.thumbnail(name, labeled ? ' (has a mask)' : '')))
  })

  turn(pages) {
    this.start = pages ? Math.max(0, this.start + pages * COUNT) : 0
    this.list()
  }

  propose(openFirst = false) {
    const bar = $('looking')
    bar.hidden = false
    bar.value = 0
    $('propose').disabled = true
    say('Looking at images without a mask.')
    listen('/api/next', { num: 10 }, {
      progress: ({ done, total }) => { bar.value = done / Math.max(1, total) },
      proposals: ({ images, of }) => {
        this.queue = images.map(({ name }) => name).filter(name => name !== this.last)
        $('proposals').replaceChildren(...images.map(({ name, uncertainty, distance }) =>
          this.thumbnail(name, `: uncertainty ${(100 * uncertainty).toFixed(0)} %, distance ${distance.toFixed(2)}`)))
        say(images.length ? `${images.length} proposals out of ${of} images.` : 'No image is left to label.')
        if (openFirst && this.queue.length) this.open(this.queue[0])
      },
      finished: () => { bar.hidden = true; $('propose').disabled = false },
    })
  }
}
