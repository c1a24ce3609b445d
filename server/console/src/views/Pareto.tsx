import { Axes, type Frame, scalesIn } from '../parts/Axes'
import { useText } from '../text'
import type { Head, StudentFacts } from '../wire'

const W = 520
const H = 260
const LEFT = 52
const BOTTOM = 40
const TOP = 16
const RIGHT = 70

interface Point {
  path: string
  head: Head
  cost: number
  kept: number
  low: number
  high: number
  passed: boolean
}

/** What each path costs and what it keeps, with 95 % intervals; the paths that no other beats are joined. */
export function Pareto({ student, task }: { student: StudentFacts; task: string }) {
  const t = useText()
  const points = pointsOf(student, task)
  if (points.length < 2) return <p class="soft">{t.notMeasuredYet}</p>
  const least = Math.min(...points.map((one) => one.cost)) - 0.04
  const lowest = Math.min(0.94, ...points.map((one) => one.low)) - 0.01
  const highest = Math.max(1.02, ...points.map((one) => one.high)) + 0.01
  const edges = { width: W, height: H, left: LEFT, right: RIGHT, top: TOP, bottom: BOTTOM }
  const frame: Frame = { ...edges, costs: [least, 1.02], kept: [lowest, highest] }
  const { x, y } = scalesIn(frame)
  const front = frontOf(points)
  return (
    <svg class="pareto" viewBox={`0 0 ${W} ${H}`} role="img" aria-label={t.paretoPicture(student.name)}>
      <Axes frame={frame} across={ticks(least, 1.02)} up={ticks(lowest, highest)} />
      <text class="axis" x={(LEFT + W - RIGHT) / 2} y={H - 4} text-anchor="middle">
        {t.computePerToken}
      </text>
      <polyline class="front" points={front.map((one) => `${x(one.cost)},${y(one.kept)}`).join(' ')} />
      {points.map((one) => (
        <g key={`${one.path} ${one.head}`} class={one.passed ? 'point passed' : 'point'}>
          <title>{`${one.path}, ${t.heads[one.head]}: ${t.between(one.kept, one.low, one.high)}`}</title>
          <line class="interval" x1={x(one.cost)} x2={x(one.cost)} y1={y(one.low)} y2={y(one.high)} />
          <circle class={one.head} cx={x(one.cost)} cy={y(one.kept)} r={5} />
          {one.head === 'cheap' || !points.some((other) => other.path === one.path && other.head === 'cheap') ? (
            <text class="label" x={x(one.cost) + 9} y={y(one.kept) + 4}>
              {one.path}
            </text>
          ) : null}
        </g>
      ))}
    </svg>
  )
}

function pointsOf(student: StudentFacts, task: string): Point[] {
  return student.paths.flatMap((path) =>
    (Object.entries(path.compute_shares) as [Head, number][]).flatMap(([head, cost]) => {
      if (path.is_full && head === 'exact') {
        return [{ path: path.name, head, cost, kept: 1, low: 1, high: 1, passed: true }]
      }
      const found = path.figures.find((one) => one.task === task && one.head === head)
      const { kept, low, high } = found?.accuracy ?? { kept: null, low: null, high: null }
      if (kept === null) return []
      return [{ path: path.name, head, cost, kept, low: low ?? kept, high: high ?? kept, passed: found?.gate === 'passed' }]
    }),
  )
}

function frontOf(points: Point[]): Point[] {
  const sorted = [...points].sort((one, other) => one.cost - other.cost || other.kept - one.kept)
  let best = -Infinity
  return sorted.filter((one) => {
    const isBetter = one.kept > best
    best = Math.max(best, one.kept)
    return isBetter
  })
}

function ticks(from: number, to: number): number[] {
  const step = to - from > 0.35 ? 0.1 : to - from > 0.15 ? 0.05 : 0.02
  const first = Math.ceil(from / step)
  const count = Math.floor(to / step) - first + 1
  return Array.from({ length: Math.max(0, count) }, (_, index) => Math.round((first + index) * step * 100) / 100)
}
