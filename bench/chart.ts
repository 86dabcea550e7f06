/** Line charts as SVG, both axes logarithmic: loads, depths and latencies span decades. */

export interface Series {
  name: string
  points: (readonly [x: number, y: number])[]
}

const WIDTH = 760
const HEIGHT = 400
const PLOT = { left: 70, right: 600, top: 40, bottom: 350 }
const COLOURS = ['#0b6e99', '#d9730d', '#448361', '#9065b0', '#c14c8a', '#6b6b6b', '#b59f3b']

export function lineChart({ title, x, y, series }: { title: string; x: string; y: string; series: Series[] }): string {
  const points = series.flatMap((one) => one.points)
  if (points.length === 0) points.push([1, 1]) // not measured
  const across = scale(
    points.map((point) => point[0]),
    PLOT.left,
    PLOT.right,
  )
  const up = scale(
    points.map((point) => point[1]),
    PLOT.bottom,
    PLOT.top,
  )
  const text = (left: number, top: number, content: string, more = '') =>
    `<text x="${left.toFixed(1)}" y="${top.toFixed(1)}" ${more}>${escape(content)}</text>`
  const line = (x1: number, y1: number, x2: number, y2: number) =>
    `<line x1="${x1.toFixed(1)}" y1="${y1.toFixed(1)}" x2="${x2.toFixed(1)}" y2="${y2.toFixed(1)}" stroke="#ddd"/>`
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="12" fill="#333">`,
    `<rect width="${WIDTH}" height="${HEIGHT}" fill="#fff"/>`,
    text(PLOT.left, 22, title, 'font-size="15" font-weight="bold"'),
    ...up.ticks.flatMap((value) => [
      line(PLOT.left, up.at(value), PLOT.right, up.at(value)),
      text(PLOT.left - 8, up.at(value) + 4, label(value), 'text-anchor="end"'),
    ]),
    ...across.ticks.flatMap((value) => [
      line(across.at(value), PLOT.top, across.at(value), PLOT.bottom),
      text(across.at(value), PLOT.bottom + 18, label(value), 'text-anchor="middle"'),
    ]),
    text((PLOT.left + PLOT.right) / 2, HEIGHT - 10, x, 'text-anchor="middle"'),
    text(0, 0, y, `text-anchor="middle" transform="translate(18 ${(PLOT.top + PLOT.bottom) / 2}) rotate(-90)"`),
    ...series.flatMap(({ name, points: own }, i) => {
      const colour = COLOURS[i % COLOURS.length]!
      const places = own.map(([px, py]) => [across.at(px).toFixed(1), up.at(py).toFixed(1)] as const)
      return [
        `<polyline fill="none" stroke="${colour}" stroke-width="2" points="${places.map((place) => place.join(',')).join(' ')}"/>`,
        ...places.map(([cx, cy]) => `<circle cx="${cx}" cy="${cy}" r="3" fill="${colour}"/>`),
        `<rect x="${PLOT.right + 14}" y="${PLOT.top + 20 * i}" width="12" height="12" fill="${colour}"/>`,
        text(PLOT.right + 32, PLOT.top + 20 * i + 10, name),
      ]
    }),
    '</svg>\n',
  ].join('\n')
}

function scale(values: number[], from: number, to: number): { at(value: number): number; ticks: number[] } {
  const low = Math.log10(Math.min(...values))
  const high = Math.max(Math.log10(Math.max(...values)), low + 0.1)
  const margin = (high - low) * 0.05
  const at = (value: number) => from + ((Math.log10(value) - low + margin) / (high - low + 2 * margin)) * (to - from)
  const steps = high - low > 2.5 ? [1] : [1, 2, 5]
  const ticks: number[] = []
  for (let power = Math.floor(low); power <= Math.ceil(high); power++) ticks.push(...steps.map((step) => step * 10 ** power))
  return { at, ticks: ticks.filter((value) => Math.log10(value) >= low - margin && Math.log10(value) <= high + margin) }
}

function label(value: number): string {
  if (value >= 1_000_000) return `${value / 1_000_000} M`
  return value >= 1 ? value.toLocaleString('en') : String(Number(value.toPrecision(2)))
}

const escape = (text: string) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;')
