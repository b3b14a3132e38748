// What G draws: a seed, a truncation, pictures with their label maps over them.
import { $, ask, say, tried } from '/server.js'

export const samples = tried(async () => {
  const psi = $('psi').value, seed = $('seed').value || 0
  say('Drawing.')
  const found = await (await ask('/api/samples', { seed, psi, num: 12 })).json()
  $('samples').replaceChildren(...found.map(({ image, label, classes }, k) => {
    const item = document.createElement('li'), pair = document.createElement('div')
    const [below, above] = [new Image(), new Image()]
    below.src = image
    below.alt = `Sample ${k + 1}, with ${classes.join(', ')}`
    above.src = label
    above.alt = ''
    above.className = 'map'
    above.style.opacity = $('sample-opacity').value / 100
    pair.className = 'pair'
    pair.append(below, above)
    item.append(pair)
    return item
  }))
  say(`${found.length} samples of seed ${seed}, truncation ${psi}.`)
})
